"""A script, its ways to train, and what is recorded of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import nn

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
