"""Train with one optimizer until a budget of work is spent, and record what happened.

Work is what is computed, not the number of steps: a forward counts 1, a backward 2. So an optimizer
that evaluates the loss more often than once per step pays for it with fewer steps.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from bench.methods import Closure, Method
from bench.sets.batches import Batch

FORWARD, BACKWARD = 1, 2
PLAIN_STEP = FORWARD + BACKWARD
FINAL_SHARE = 0.2  # of the work: final figures are means over what is measured in this last part
EARLY = 30  # steps in which a first step size that is too large shows
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Checkpoint:
    """The state of the model after `work` units, in evaluation mode, on fixed samples."""

    work: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float  # not a number where targets are not classes


@dataclass
class Run:
    """One training run; the lists of steps have one entry per step."""

    losses: list[float] = field(default_factory=list)
    work: list[int] = field(default_factory=list)  # done when the step was over
    extra_forwards: list[int] = field(default_factory=list)
    step_sizes: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    # of scripts:
    scores: dict[str, float] = field(default_factory=dict)
    died: bool = False
    seconds: float = 0.0  # all that the run took

    @property
    def final_loss(self) -> float:
        """The mean over the last fifth of the work."""
        start = (1 - FINAL_SHARE) * self.work[-1]
        return fmean(loss for loss, work in zip(self.losses, self.work) if work > start)

    @property
    def early_peak(self) -> float:
        """The largest of the first losses, relative to the first one."""
        early = self.losses[:EARLY]
        return max(early) / early[0] if all(map(math.isfinite, early)) else math.inf

    def step_size_at(self, step: int) -> float:
        """Return that of the step with this number, from 1; -1 is the last one."""
        index = step - 1 if step > 0 else step
        return self.step_sizes[index] if index < len(self.step_sizes) else math.nan


@dataclass
class Work:
    """Counts every forward and every backward, whoever asks for them."""

    forwards: int = 0
    units: int = 0

    def counting(self, closure: Closure) -> Closure:
        """`closure`, counted: a hook on the loss notices the backward."""

        def count_backward(_gradient: Tensor) -> None:
            self.units += BACKWARD

        def counted() -> Tensor:
            self.forwards += 1
            self.units += FORWARD
            loss = closure()
            if loss.requires_grad:
                loss.register_hook(count_backward)
            return loss

        return counted


@dataclass
class Loop:
    """The steps of one optimizer within a budget of work, recorded in `run`."""

    optimizer: Optimizer
    method: Method
    run: Run
    budget: float = math.inf
    device: torch.device = CPU
    in_steps: bool = False  # every step counts as a plain one, whatever a search costs

    def __post_init__(self) -> None:
        self.work = Work()
        self._full = [group.get("lr", 1.0) for group in self.optimizer.param_groups]

    @property
    def spent(self) -> int:
        """What is done of the budget."""
        return PLAIN_STEP * len(self.run.losses) if self.in_steps else self.work.units

    def steps(self) -> Iterator[int]:
        """Count the steps while there is work left."""
        while self.spent < self.budget:
            yield len(self.run.losses)

    def step(self, closure: Closure) -> float:
        """Take a step; return its seconds."""
        run, before = self.run, self.work.forwards
        if self.method.factor is not None:
            factor = self.method.factor(self.spent / self.budget)
            for group, lr in zip(self.optimizer.param_groups, self._full):
                group["lr"] = factor * lr
        start = now(self.device)
        loss = self.method.step(self.optimizer, self.work.counting(closure))
        seconds = now(self.device) - start
        run.milliseconds.append(1e3 * seconds)
        run.losses.append(float(loss))
        run.work.append(self.work.units)
        # A plain step has one forward; what is above that was spent on the search.
        run.extra_forwards.append(self.work.forwards - before - 1)
        run.step_sizes.append(self.method.step_size(self.optimizer))
        return seconds


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- what is trained ------------------------------------------------------------------------------


SomeCase = TypeVar("SomeCase", bound="Case")


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """What is trained, and for how much work: a `Problem`, or a script with a loop of its own."""

    case: str
    title: str
    description: str  # of data and model, for a reader
    plain_steps: int  # the budget: as much work as this many steps without a search
    in_steps: bool = False  # or this many steps, as papers count epochs

    @property
    def budget(self) -> int:
        return PLAIN_STEP * self.plain_steps

    def scaled(self: SomeCase, work: float) -> SomeCase:
        """The same with `work` times the steps."""
        return replace(self, plain_steps=max(1, round(work * self.plain_steps)))

    def run(self, method: Method, seed: int, device: torch.device) -> Run:
        raise NotImplementedError


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over every prediction: one per image, or one per character."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem(Case):
    """A model that is trained on a batch a step, and evaluated in between."""

    evaluated_on: str  # in words
    model: Callable[[], nn.Module]
    batches: Callable[[torch.Generator], Iterator[Batch]]
    train_sample: Sequence[Batch]  # fixed, for evaluation
    validation_sample: Sequence[Batch]
    checkpoints: int = 15  # evaluations, evenly spread over the work
    log_loss: bool = False  # the loss falls over orders of magnitude: plot it so
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy  # a mean, of outputs and targets
    unit: str = "nats"

    @property
    def classes(self) -> bool:
        """Whether outputs are logits: then accuracy can be counted."""
        return self.loss is cross_entropy

    def scaled(self, work: float) -> "Problem":
        """A short training is evaluated less often, which would take longer than it."""
        problem = super().scaled(work)
        checkpoints = max(1, min(self.checkpoints, problem.plain_steps // 10))
        return replace(problem, checkpoints=checkpoints)

    def run(self, method: Method, seed: int, device: torch.device) -> Run:
        """Train until the budget is spent; the seed gives weights, order of the data and dropout.

        Batches are drawn outside the closure and from their own generator, so every optimizer sees
        the same ones.
        """
        torch.manual_seed(seed)
        model = self.model().to(device)
        optimizer = method.build(model)
        batches = self.batches(torch.Generator().manual_seed(seed))
        loop = Loop(optimizer, method, run := Run(), self.budget, device, self.in_steps)
        run.checkpoints.append(self._evaluate(model, optimizer, run))
        for _ in loop.steps():
            inputs, targets = (tensor.to(device) for tensor in next(batches))
            loop.step(partial(self.loss_of, model, inputs, targets))
            # Always the same number of checkpoints: one step may pass several marks at once.
            passed = min(self.checkpoints, loop.spent * self.checkpoints // self.budget)
            if missing := max(0, passed + 1 - len(run.checkpoints)):
                run.checkpoints += [self._evaluate(model, optimizer, run)] * missing
        return run

    def loss_of(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(model(inputs), targets)

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, optimizer: Optimizer, run: Run) -> Checkpoint:
        """In evaluation mode; schedule-free optimizers have one, too: their averaged weights."""
        modes: list[Any] = [one for one in (model, optimizer) if hasattr(one, "eval")]
        for one in modes:
            one.eval()
        train_loss, _ = self.measured(model, self.train_sample)
        validation_loss, accuracy = self.measured(model, self.validation_sample)
        for one in modes:
            one.train()
        return Checkpoint(max(run.work, default=0), train_loss, validation_loss, accuracy)

    def measured(self, model: nn.Module, sample: Sequence[Batch]) -> tuple[float, float]:
        """Loss and accuracy, which is not a number where targets are not classes."""
        total, correct, count = 0.0, 0, 0
        for inputs, targets in sample:
            outputs = model(inputs)
            total += self.loss(outputs, targets).item() * targets.numel()
            correct += int((outputs.argmax(-1) == targets).sum()) if self.classes else 0
            count += targets.numel()
        return total / count, correct / count if self.classes else math.nan
