"""What the scripts' loops share: a step with their own optimizer or with one in its place.

A swapped optimizer is built by `make(params, module, max_grad_norm=...)` and driven by
`step(closure)` alone, so that anything with this step can stand in for FusedSaLSa.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bench.method import Closure
from bench.scripts.script import Factor, Run, Way
from bench.training import PLAIN_STEP, Work


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
        return float(getattr(self.optimizer, "applied_step_size", 1.0) * lr)

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
