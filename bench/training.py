"""Train with one optimizer until a budget of work is spent, and record what happened.

Work is what is computed, not the number of steps: a forward counts 1, a backward 2. So an optimizer
that evaluates the loss more often than once per step pays for it with fewer steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.methods import Closure, Factor, Method
from bench.sets.batches import Batch

FORWARD, BACKWARD = 1, 2
PLAIN_STEP = FORWARD + BACKWARD
FINAL_SHARE = 0.2  # of the work: final figures are means over what is measured in this last part
EARLY = 30  # steps in which a first step size that is too large shows
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Loss:
    """A mean over every prediction, for `(outputs, targets)`."""

    of: Callable[[Tensor, Tensor], Tensor]
    unit: str
    classes: bool = False  # the outputs are logits: accuracy can be counted


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over every prediction: one per image, or one per character."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


CROSS_ENTROPY = Loss(cross_entropy, "nats", classes=True)
MEAN_SQUARE = Loss(F.mse_loss, "mean square")


@dataclass(frozen=True)
class Problem:
    """What is trained on what, and for how much work."""

    case: str
    title: str
    description: str  # of data and model, for a reader
    evaluated_on: str  # in words
    model: Callable[[], nn.Module]
    batches: Callable[[torch.Generator], Iterator[Batch]]
    train_sample: Sequence[Batch]  # fixed, for evaluation
    validation_sample: Sequence[Batch]
    plain_steps: int  # the budget: as much work as this many steps without a search
    checkpoints: int  # evaluations, evenly spread over the work
    log_loss: bool = False  # the loss falls over orders of magnitude: plot it so
    loss: Loss = CROSS_ENTROPY

    @property
    def budget(self) -> int:
        return PLAIN_STEP * self.plain_steps


@dataclass(frozen=True)
class Checkpoint:
    """The state of the model after `work` units, in evaluation mode, on fixed samples."""

    work: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float  # not a number where targets are not classes
    seconds: float = 0.0  # in steps so far, without evaluations


@dataclass
class Run:
    """One training run; the lists of steps have one entry per step."""

    case: str
    method: str
    seed: int
    losses: list[float] = field(default_factory=list)
    work: list[int] = field(default_factory=list)  # done when the step was over
    extra_forwards: list[int] = field(default_factory=list)
    step_sizes: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    skipped_steps: int = 0
    unit_sizes: dict[str, list[float]] = field(default_factory=dict)  # where units have their own
    scores: dict[str, float] = field(default_factory=dict)
    died: bool = False
    seconds: float = 0.0  # all that the run took
    warnings: list[str] = field(default_factory=list)  # that a user would have got

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
    backwards: int = 0

    @property
    def units(self) -> int:
        return FORWARD * self.forwards + BACKWARD * self.backwards

    def counting(self, closure: Closure) -> Closure:
        """`closure`, counted: a hook on the loss notices the backward."""

        def counted() -> Tensor:
            self.forwards += 1
            loss = closure()
            if loss.requires_grad:
                loss.register_hook(self._count_backward)
            return loss

        return counted

    def _count_backward(self, _gradient: Tensor) -> None:
        self.backwards += 1


@dataclass
class Loop:
    """The steps of one optimizer within a budget of work, recorded in `run`."""

    optimizer: torch.optim.Optimizer
    take: Callable[[torch.optim.Optimizer, Closure], Tensor]  # a step
    step_size: Callable[[torch.optim.Optimizer], float]  # of the step that was just taken
    run: Run
    budget: float = math.inf
    factor: Factor | None = None  # on `lr`, at a share of the budget
    device: torch.device = CPU
    work: Work = field(default_factory=Work)  # two optimizers may share it, and the budget

    def __post_init__(self) -> None:
        self._full = [group.get("lr", 1.0) for group in self.optimizer.param_groups]

    def steps(self) -> Iterator[int]:
        """Count the steps while there is work left."""
        while self.work.units < self.budget:
            yield len(self.run.losses)

    def step(self, closure: Closure) -> float:
        """Take a step; return its seconds."""
        if self.factor is not None:
            factor = self.factor(self.work.units / self.budget)
            for group, lr in zip(self.optimizer.param_groups, self._full):
                group["lr"] = factor * lr
        before, run = self.work.forwards, self.run
        start = now(self.device)
        loss = self.take(self.optimizer, self.work.counting(closure))
        seconds = now(self.device) - start
        run.milliseconds.append(1e3 * seconds)
        run.losses.append(float(loss))
        run.work.append(self.work.units)
        # A plain step has one forward; what is above that was spent on the search.
        run.extra_forwards.append(self.work.forwards - before - 1)
        run.step_sizes.append(self.step_size(self.optimizer))
        run.skipped_steps = int(getattr(self.optimizer, "skipped_steps", 0))
        return seconds


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train(
    problem: Problem,
    method: Method,
    seed: int,
    device: torch.device,
    on_work: Callable[[int], None] = lambda units: None,
) -> Run:
    """Train until the budget is spent; the seed gives weights, order of the data and dropout.

    Batches are drawn outside the closure and from their own generator, so every optimizer sees the
    same ones. `on_work` is told how much work is done so far.
    """
    torch.manual_seed(seed)
    model = problem.model().to(device)
    optimizer = method.build(model)
    batches = problem.batches(torch.Generator().manual_seed(seed))
    run, budget = Run(problem.case, method.name, seed), problem.budget
    loop = Loop(optimizer, method.step, method.step_size, run, budget, method.factor, device)
    run.checkpoints.append(_evaluate(problem, model, optimizer, run))
    for _ in loop.steps():
        inputs, targets = (tensor.to(device) for tensor in next(batches))
        loop.step(partial(_loss, problem, model, inputs, targets))
        for name, size in method.unit_sizes(optimizer).items():
            run.unit_sizes.setdefault(name, []).append(size)
        # Always the same number of checkpoints: one step may pass several marks at once.
        passed = min(problem.checkpoints, run.work[-1] * problem.checkpoints // budget)
        if missing := max(0, passed + 1 - len(run.checkpoints)):
            run.checkpoints += [_evaluate(problem, model, optimizer, run)] * missing
        on_work(run.work[-1])
    return run


def _loss(problem: Problem, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return problem.loss.of(model(inputs), targets)


@torch.no_grad()
def _evaluate(
    problem: Problem, model: nn.Module, optimizer: torch.optim.Optimizer, run: Run
) -> Checkpoint:
    """In evaluation mode; schedule-free optimizers have one, too: their averaged weights."""
    modes: list[Any] = [one for one in (model, optimizer) if hasattr(one, "eval")]
    for one in modes:
        one.eval()
    losses, loss = [], problem.loss
    for sample in (problem.train_sample, problem.validation_sample):
        total, correct, count = 0.0, 0, 0
        for inputs, targets in sample:
            outputs = model(inputs)
            total += loss.of(outputs, targets).item() * targets.numel()
            correct += int((outputs.argmax(-1) == targets).sum()) if loss.classes else 0
            count += targets.numel()
        losses.append(total / count)
    for one in modes:
        one.train()
    accuracy = correct / count if loss.classes else math.nan
    work, seconds = max(run.work, default=0), sum(run.milliseconds) / 1e3
    return Checkpoint(work, losses[0], losses[1], accuracy, seconds)
