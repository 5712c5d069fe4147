"""Train with one optimizer until a budget of work is spent, and record what happened.

Work is what is computed, not the number of steps: a forward counts 1, a backward 2. So an optimizer
that evaluates the loss more often than once per step pays for it with fewer steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.devices import now
from bench.losses import CROSS_ENTROPY, Loss
from bench.method import Closure, Method
from bench.sets.batches import Batch

FORWARD, BACKWARD = 1, 2
PLAIN_STEP = FORWARD + BACKWARD


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


@dataclass(frozen=True)
class Problem:
    """What is trained on what, and for how much work."""

    case: str
    title: str
    description: str  # of data and model, for a reader
    evaluated_on: str  # the fixed samples, in words
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
    extra_forwards: list[int] = field(default_factory=list)
    step_sizes: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    skipped_steps: int = 0
    unit_sizes: dict[str, list[float]] = field(default_factory=dict)  # where units have their own
    searched_units: list[int] = field(default_factory=list)  # of every search; -1: all together


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
    run, work, seconds = Run(problem.case, method.name, seed), Work(), 0.0
    evaluate = partial(_evaluate, problem, model, optimizer)
    run.checkpoints.append(evaluate(work.units, seconds))
    full = [group.get("lr", 1.0) for group in optimizer.param_groups]

    while work.units < problem.budget:
        inputs, targets = (tensor.to(device) for tensor in next(batches))
        closure = work.counting(partial(_loss, problem, model, inputs, targets))
        before = Work(work.forwards, work.backwards)
        if method.factor is not None:
            factor = method.factor(work.units / problem.budget)
            for group, lr in zip(optimizer.param_groups, full):
                group["lr"] = factor * lr
        start = now(device)
        loss = method.step(optimizer, closure)
        elapsed = now(device) - start
        run.milliseconds.append(1e3 * elapsed)
        seconds += elapsed

        run.losses.append(loss.item())
        # A plain step has one forward; what is above that was spent on the search.
        run.extra_forwards.append(work.forwards - before.forwards - 1)
        run.step_sizes.append(method.step_size(optimizer))
        if method.unit_sizes is not None:
            for name, size in method.unit_sizes(optimizer).items():
                run.unit_sizes.setdefault(name, []).append(size)
            if run.extra_forwards[-1]:
                unit = optimizer.last_search.unit  # type: ignore[attr-defined]
                run.searched_units.append(-1 if unit is None else unit)
        # Always the same number of checkpoints: one step may pass several marks at once.
        passed = min(problem.checkpoints, work.units * problem.checkpoints // problem.budget)
        if passed >= len(run.checkpoints):
            missing = passed + 1 - len(run.checkpoints)
            run.checkpoints += [evaluate(work.units, seconds)] * missing
        on_work(work.units)

    run.skipped_steps = int(getattr(optimizer, "skipped_steps", 0))
    return run


def _loss(problem: Problem, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return problem.loss(model(inputs), targets)


@torch.no_grad()
def _evaluate(
    problem: Problem,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    work: int,
    seconds: float,
) -> Checkpoint:
    """In evaluation mode; schedule-free optimizers have one, too: their averaged weights."""
    modes: list[Any] = [one for one in (model, optimizer) if hasattr(one, "eval")]
    for one in modes:
        one.eval()
    train_loss, _ = _loss_and_accuracy(model, problem.loss, problem.train_sample)
    validation_loss, accuracy = _loss_and_accuracy(model, problem.loss, problem.validation_sample)
    for one in modes:
        one.train()
    return Checkpoint(work, train_loss, validation_loss, accuracy, seconds)


def _loss_and_accuracy(
    model: nn.Module, loss_of: Loss, sample: Sequence[Batch]
) -> tuple[float, float]:
    loss, correct, count = 0.0, 0, 0
    for inputs, targets in sample:
        outputs = model(inputs)
        loss += loss_of(outputs, targets).item() * targets.numel()
        correct += int((outputs.argmax(-1) == targets).sum()) if loss_of.classes else 0
        count += targets.numel()
    return loss / count, correct / count if loss_of.classes else math.nan
