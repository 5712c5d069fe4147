"""What the scripts share: an optimizer of their own or one in its place, and what is recorded.

A swapped optimizer is built by `make(params, module, max_grad_norm=...)` and driven by
`step(closure)` alone, so that anything with this step can stand in for FusedSaLSa.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bench.optimizers import Closure
from bench.training import PLAIN_STEP, Work

FINAL_SHARE = 0.2  # of the work: the final loss is a mean over it
EARLY = 30  # steps in which a first step size that is too large shows
SHOWN_STEPS = (1, 10, 30)  # whose step sizes are shown, and the last one's


class Make(Protocol):
    """Builds an optimizer, the script's own or another in its place."""

    def __call__(
        self, params: Any, module: nn.Module, *, max_grad_norm: float | None = None
    ) -> torch.optim.Optimizer: ...


Factor = Callable[[float], float]  # on the optimizer's `lr`, at a share of the work, 0 to 1


@dataclass(frozen=True)
class Way:
    """One way to train: an optimizer, the schedule, and whether it takes the place of another."""

    name: str
    settings: str  # in words, for captions
    make: Make
    factor: Factor | None = None
    swapped: bool = False  # step(closure), instead of backward, clipping and step()


@dataclass
class Run:
    """One run of a script; the lists have one entry per step."""

    case: str
    way: str
    seed: int
    losses: list[float] = field(default_factory=list)
    work: list[int] = field(default_factory=list)  # done when the step was over
    step_sizes: list[float] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    died: bool = False
    seconds: float = 0.0
    skipped_steps: int = 0

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
        """Of the step with this number, from 1; -1 is the last one."""
        index = step - 1 if step > 0 else step
        return self.step_sizes[index] if index < len(self.step_sizes) else math.nan


@dataclass(frozen=True)
class Script:
    """A training script: its own optimizers, and how it trains with any."""

    case: str
    title: str
    description: str
    own: tuple[Way, ...]
    train: Callable[[Way, int], Run]
    schedules: dict[str, Factor | None] = field(default_factory=lambda: {"": None})  # swapped runs
    score: str = ""  # in words
    shown: tuple[str, ...] = ()  # of `Run.scores`: what the score is
    judged_by: str = "final_loss"  # or one of `shown`
    higher_is_better: bool = False
    repeats: int = 1  # runs for every seed, where they differ a lot
    loss_is_positive: bool = True  # else nothing is relative to the first one


class Training:
    """An optimizer in a training loop: `step` is what the script does with a batch's loss."""

    def __init__(
        self,
        way: Way,
        params: Any,
        module: nn.Module,
        steps: int,
        max_grad_norm: float | None = None,
        work: Work | None = None,  # that another optimizer counts, too; `steps` is of both then
    ) -> None:
        self.way = way
        self.budget = PLAIN_STEP * steps
        self.max_grad_norm = max_grad_norm
        self.optimizer = way.make(params, module, max_grad_norm=max_grad_norm)
        self.parameters = list(module.parameters())
        self.work = Work() if work is None else work
        self.losses: list[float] = []
        self.work_done: list[int] = []
        self.step_sizes: list[float] = []
        self._full = [group.get("lr", 1.0) for group in self.optimizer.param_groups]
        self._start = time.perf_counter()

    def steps(self) -> Iterator[int]:
        """The steps' numbers, while there is work left."""
        while self.work.units < self.budget:
            yield len(self.losses)

    def step(self, closure: Closure) -> Tensor:
        """One step: with the closure, or as the script takes it with its own optimizer."""
        if self.way.factor is not None:
            factor = self.way.factor(self.work.units / self.budget)
            for group, lr in zip(self.optimizer.param_groups, self._full):
                group["lr"] = factor * lr
        closure = self.work.counting(closure)
        if self.way.swapped:
            loss: Tensor = self.optimizer.step(closure)  # type: ignore[arg-type, assignment]
        else:
            loss = self._own_step(closure)
        self.losses.append(float(loss))
        self.work_done.append(self.work.units)
        self.step_sizes.append(self._step_size())
        return loss

    def _own_step(self, closure: Closure) -> Tensor:
        self.optimizer.zero_grad()
        loss = closure()
        loss.backward()
        if self.max_grad_norm is not None:
            clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        return loss.detach()

    def _step_size(self) -> float:
        lr = self.optimizer.param_groups[0].get("lr", 1.0)
        return float(getattr(self.optimizer, "step_size", 1.0) * lr)

    def run(self, script: str, seed: int) -> Run:
        """What was recorded; died: not finite, or in the end above the first loss."""
        run = Run(script, self.way.name, seed, self.losses, self.work_done, self.step_sizes)
        run.seconds = time.perf_counter() - self._start
        run.skipped_steps = int(getattr(self.optimizer, "skipped_steps", 0))
        run.died = not run.final_loss <= run.losses[0]
        return run


def at_least_one(steps: float) -> int:
    return max(1, round(steps))


def warm_up_and_cosine_to(lowest: float, warm_up: float = 0.1) -> Factor:
    """A linear warm-up from 0 to 1, then a cosine down to `lowest`."""

    def factor(share: float) -> float:
        if share < warm_up:
            return max(share, 1e-3) / warm_up
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warm_up) / (1 - warm_up))))
        return lowest + (1 - lowest) * cosine

    return factor


def without_decay_of_vectors(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices decay; biases and the scales of norms do not."""
    weights = list(model.parameters())
    return [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
