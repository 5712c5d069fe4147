"""A script, its ways to train, and what all scripts share: loops, counting, clipping, the record.

A swapped optimizer is built by `make(params, module, max_grad_norm=...)` and driven by
`step(closure)` alone, so that anything with this step can stand in for FusedSaLSa.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from bench.methods import Closure, Factor, gradients
from bench.optimizers import applied_step_size, closure_step
from bench.training import PLAIN_STEP, Loop, Run, Work

Make = Callable[..., Optimizer]  # of (params, module, max_grad_norm=None)


@dataclass(frozen=True)
class Way:
    """One way to train: an optimizer, the schedule, and whether it takes the place of another."""

    name: str
    settings: str  # in words, for captions
    make: Make
    factor: Factor | None = None
    swapped: bool = False  # step(closure), instead of backward, clipping and step()
    grid: tuple[float, ...] = ()  # nothing is tuned


def own(
    name: str, settings: str, optimizer: Callable[..., Optimizer], factor: Factor | None = None,
    **options: Any,
) -> Way:  # fmt: skip
    """The script's own way: its optimizer with a learning rate."""
    return Way(name, settings, lambda params, module, **_: optimizer(params, **options), factor)


@dataclass
class Training:
    """One run of a script; all its optimizers share the counted work and the budget."""

    way: Way
    run: Run
    steps: int  # the budget, in plain steps
    chance: torch.Generator
    work: Work = field(default_factory=Work)

    def loop(
        self, params: Any, module: nn.Module, clip: float | None = None, run: Run | None = None
    ) -> Loop:
        """The steps of one optimizer, recorded in `run`, or in the script's."""
        optimizer = self.way.make(params, module, max_grad_norm=clip)
        take = closure_step if self.way.swapped else partial(_own_step, module, clip)
        return Loop(
            optimizer, take, applied_step_size, run or self.run, PLAIN_STEP * self.steps,
            self.way.factor, work=self.work,
        )  # fmt: skip


def _own_step(
    module: nn.Module, clip: float | None, optimizer: Optimizer, closure: Closure
) -> Tensor:
    """The step as the script takes it with its own optimizer."""
    loss = gradients(optimizer, closure)
    if clip is not None:
        clip_grad_norm_(list(module.parameters()), clip)
    optimizer.step()
    return loss.detach()


@dataclass(frozen=True, eq=False)
class Script:
    """A training script: its own optimizers, and how it trains with any."""

    case: str
    title: str
    description: str
    own: tuple[Way, ...]
    steps: int
    train: Callable[[Training], bool]  # whether it died
    schedules: dict[str, Factor | None] = field(default_factory=lambda: {"": None})  # swapped runs
    score: str = ""  # in words
    shown: tuple[str, ...] = ()  # of `Run.scores`: what the score is
    judged_by: str = "final_loss"  # or one of `shown`
    higher_is_better: bool = False
    repeats: int = 1  # runs for every seed, where they differ a lot
    loss_is_positive: bool = True  # else nothing is relative to the first one
    budget: int = 1  # a bar counts whole runs

    def shortened(self, work: float) -> Script:
        return replace(self, steps=max(1, round(work * self.steps)))

    def run(self, way: Way, seed: int) -> Run:
        """Train, and record the time and what a user would have been warned of."""
        torch.manual_seed(seed)
        run = Run(self.case, way.name, seed)
        start = time.perf_counter()
        # A softmax that is saturated is full of denormals: a step then takes five times as long.
        torch.set_flush_denormal(True)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                chance = torch.Generator().manual_seed(seed)
                run.died = self.train(Training(way, run, self.steps, chance))
        finally:
            torch.set_flush_denormal(False)
        run.seconds = time.perf_counter() - start
        run.warnings = sorted({str(warning.message) for warning in caught})
        return run


def one_batch_a_step(
    model: Callable[[], nn.Module], batches: Callable[[torch.Generator], Iterator[Any]],
    loss: Callable[..., Tensor], scores: Callable[[nn.Module], dict[str, float]] = lambda model: {},
    clip: float | None = None, decay: float | None = None,
) -> Callable[[Training], bool]:  # fmt: skip
    """What most scripts do; with `decay` matrices decay, and vectors do not."""

    def train(training: Training) -> bool:
        network = model()
        groups: list[Any] = list(network.parameters())
        if decay is not None:
            groups = [
                {"params": [w for w in groups if w.dim() >= 2], "weight_decay": decay},
                {"params": [w for w in groups if w.dim() < 2], "weight_decay": 0.0},
            ]
        loop = training.loop(groups, network, clip)
        drawn = batches(training.chance)
        for _ in loop.steps():
            loop.step(partial(loss, network, *next(drawn)))
        with torch.no_grad():
            training.run.scores.update(scores(network))
        return blew_up(training.run)

    return train


def blew_up(run: Run) -> bool:
    """Whether the last losses are not finite, or above the first one."""
    return not run.final_loss <= run.losses[0]
