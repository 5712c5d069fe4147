"""What all scripts share: a run of theirs, its loops, and the loop that most of them have."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.methods import Factor, Method
from bench.training import Case, Loop, Run, Work


@dataclass
class Training:
    """One run of a script; all its optimizers share the counted work and the budget."""

    script: Script
    method: Method
    run: Run
    chance: torch.Generator
    work: Work = field(default_factory=Work)

    def loop(
        self, model: nn.Module, params: Any = None, clip: float | None = None,
        run: Run | None = None,
    ) -> Loop:  # fmt: skip
        """The steps of one optimizer, recorded in `run`, or in the script's."""
        optimizer = self.method.build(model, params, clip)
        return Loop(optimizer, self.method, run or self.run, self.script.budget, work=self.work)


@dataclass(frozen=True, eq=False, kw_only=True)
class Script(Case):
    """A training script: its own optimizers, and how it trains with any."""

    own: tuple[Method, ...]
    train: Callable[[Training], bool]  # whether it died
    schedules: tuple[Factor | None, ...] = (None,)  # of swapped runs
    score: str = ""  # in words: what `Run.scores` has
    judged_by: str = "final_loss"  # or one of the scores, where the loss says little
    higher_is_better: bool = False

    def run(self, method: Method, seed: int, device: torch.device) -> Run:
        """Train, and record the time and whether it died."""
        torch.manual_seed(seed)
        chance, run = torch.Generator().manual_seed(seed), Run()
        start = time.perf_counter()
        # A softmax that is saturated is full of denormals: a step then takes five times as long.
        torch.set_flush_denormal(True)
        try:
            run.died = self.train(Training(self, method, run, chance))
        finally:
            torch.set_flush_denormal(False)
        run.seconds = time.perf_counter() - start
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
        loop = training.loop(network, groups, clip)
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
