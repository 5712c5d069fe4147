"""What all scripts share: a run of theirs, its loops, and the loop that most of them have."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.methods import Factor, Method
from bench.training import Case, Loop, Run, Work

# Trains with loops that are made for (model, params=..., clip=..., run=...), with a run to record
# and with random numbers; returns whether training died.
Train = Callable[[Callable[..., Loop], Run, torch.Generator], bool]


@dataclass(frozen=True, eq=False, kw_only=True)
class Script(Case):
    """A training script: its own optimizers, and how it trains with any."""

    own: tuple[Method, ...]
    train: Train
    schedules: tuple[Factor | None, ...] = (None,)  # of swapped runs
    score: str = ""  # in words: what `Run.scores` has
    judged_by: str = "final_loss"  # or one of the scores, where the loss says little

    def run(self, method: Method, seed: int, device: torch.device) -> Run:
        """Train, and record the time and whether it died."""
        recorded, work = Run(), Work()  # the script's optimizers share the work, and the budget

        def loop(model: nn.Module, params: Any = None, clip: Any = None, run: Any = None) -> Loop:
            optimizer = method.build(model, params, clip)
            return Loop(optimizer, method, run or recorded, self.budget, work=work)

        torch.manual_seed(seed)
        start = time.perf_counter()
        # A softmax that is saturated is full of denormals: a step then takes five times as long.
        torch.set_flush_denormal(True)
        recorded.died = self.train(loop, recorded, torch.Generator().manual_seed(seed))
        torch.set_flush_denormal(False)
        recorded.seconds = time.perf_counter() - start
        return recorded


def one_batch_a_step(
    model: Callable[[], nn.Module], batches: Callable[[torch.Generator], Iterator[Any]],
    loss: Callable[..., Tensor], scores: Callable[[nn.Module], dict[str, float]] = lambda model: {},
    clip: float | None = None, decay: float | None = None,
) -> Train:  # fmt: skip
    """What most scripts do; with `decay` matrices decay, and vectors do not."""

    def train(loop_of: Callable[..., Loop], run: Run, chance: torch.Generator) -> bool:
        network = model()
        groups: list[Any] = list(network.parameters())
        if decay is not None:
            groups = [
                {"params": [w for w in groups if w.dim() >= 2], "weight_decay": decay},
                {"params": [w for w in groups if w.dim() < 2], "weight_decay": 0.0},
            ]
        loop, drawn = loop_of(network, groups, clip), batches(chance)
        for _ in loop.steps():
            loop.step(partial(loss, network, *next(drawn)))
        with torch.no_grad():
            run.scores.update(scores(network))
        return blew_up(run)

    return train


def blew_up(run: Run) -> bool:
    """Whether the last losses are not finite, or above the first one."""
    return not run.final_loss <= run.losses[0]
