"""What a bench needs to know of an optimizer: how it is built, and what a step with a closure is.

The closure is the same for all: it computes the loss of one batch and returns it, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Closure = Callable[[], Tensor]


@dataclass(frozen=True)
class Method:
    """An optimizer with its settings; `factor` scales its `lr` at a share of the work, 0 to 1."""

    name: str
    settings: str  # in words, for captions
    build: Callable[[nn.Module], torch.optim.Optimizer]
    step: Callable[[torch.optim.Optimizer, Closure], Tensor]
    step_size: Callable[[torch.optim.Optimizer], float]  # of the step that was just taken
    factor: Callable[[float], float] | None = None
    grid: tuple[float, ...] = ()  # learning rates to choose from, each by a run of its own
    chosen_lr: float = math.nan  # from the grid
    unit_sizes: Callable[[torch.optim.Optimizer], dict[str, float]] | None = None
    ours: bool = False  # what it does depends on the sources of salsa_fused


def plain_step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    """The ordinary training step of torch: one forward, one backward."""
    optimizer.zero_grad()
    loss = closure()
    loss.backward()
    optimizer.step()
    return loss.detach()


def lr_of(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]


def cosine_end(share: float) -> float:
    """1 over the first half, then a cosine down to 0."""
    return 1.0 if share < 0.5 else 0.5 * (1 + math.cos(math.pi * (2 * share - 1)))


def warm_up_and_cosine(share: float, warm_up: float = 0.1) -> float:
    """A linear ramp from 0 to 1 over the first tenth, then a cosine down to 0."""
    if share < warm_up:
        return max(share, 1e-3) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))
