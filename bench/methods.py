"""An optimizer as a bench sees it, with torch's own and what is done with every one of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

Closure = Callable[[], Tensor]  # computes the loss of one batch and returns it, nothing else
Step = Callable[[Any, Closure], Tensor]  # of an optimizer
Factor = Callable[[float], float]  # on an optimizer's `lr`, at a share of the work, 0 to 1
GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def gradients(optimizer: Optimizer, closure: Closure) -> Tensor:
    """One forward and one backward; the loss."""
    optimizer.zero_grad()
    loss = closure()
    loss.backward()
    return loss


def plain_step(optimizer: Optimizer, closure: Closure) -> Tensor:
    """The ordinary training step of torch."""
    loss = gradients(optimizer, closure)
    optimizer.step()
    return loss.detach()


def closure_step(optimizer: Any, closure: Closure) -> Tensor:
    """FusedSaLSa's step: it calls the closure, and runs zero_grad and backward itself."""
    return optimizer.step(closure)


def applied_step_size(optimizer: Any) -> float:
    """What FusedSaLSa applies, with the factor; the learning rate of any other optimizer."""
    lr = optimizer.param_groups[0].get("lr", 1.0)
    return float(getattr(optimizer, "applied_step_size", 1.0) * lr)


@dataclass(frozen=True)
class Method:
    """An optimizer with its settings."""

    name: str
    settings: str  # in words, for captions
    build: Callable[..., Optimizer]  # of (model, params=all of the model's, clip=None)
    step: Step = plain_step
    step_size: Callable[[Any], float] = applied_step_size  # of the step that was just taken
    factor: Factor | None = None
    grid: dict[float, "Method"] = field(default_factory=dict)  # by their lr; the best one counts


def of_torch(
    name: str, settings: str, optimizer: Callable[..., Optimizer], factor: Factor | None = None,
    **options: Any,
) -> Method:  # fmt: skip
    """An optimizer that is used as torch's are: zero_grad, backward, clipping, step()."""

    def build(model: nn.Module, params: Any = None, clip: float | None = None) -> Optimizer:
        built = optimizer(list(model.parameters()) if params is None else params, **options)
        if clip is not None:

            def clip_gradients(*_: object) -> None:
                clip_grad_norm_(model.parameters(), clip)

            built.register_step_pre_hook(clip_gradients)
        return built

    return Method(name, settings, build, factor=factor)


def adamw(name: str = "AdamW", settings: str = "", lr: float = 1e-3, **how: Any) -> Method:
    """As torch builds it by default, on a CPU a loop over tensors; `fused=True` is faster."""
    return of_torch(name, settings or f"lr={lr:g}", torch.optim.AdamW, lr=lr, **how)


def tuned(name: str, grid: tuple[float, ...], make: Callable[[float], Method], said: str) -> Method:
    """The best learning rate of a grid, by the validation loss of a seed of its own."""
    of_lr = {lr: replace(make(lr), name=name) for lr in grid}
    return replace(of_lr[grid[0]], settings=f"the best lr of {len(grid)}, {said}", grid=of_lr)


def tuned_adamw(grid: tuple[float, ...] = GRID) -> Method:
    """The best learning rate of a grid, with a schedule."""
    said = "warm-up and cosine"

    def make(lr: float) -> Method:
        return adamw("AdamW", f"lr={lr:g}, {said}", lr, factor=warm_up_and_cosine)

    return tuned("AdamW, tuned", grid, make, said)


ADAM = of_torch("Adam", "lr=1e-3", torch.optim.Adam, lr=1e-3)

# --- schedules ------------------------------------------------------------------------------------


def cosine_end(share: float) -> float:
    """1 over the first half, then a cosine down to 0."""
    return 1.0 if share < 0.5 else 0.5 * (1 + math.cos(math.pi * (2 * share - 1)))


def linear_end(share: float) -> float:
    """What `total_steps` does, over the share of the work: 1, then linearly to 0."""
    return min(1.0, max(2 * (1 - share), 1e-3))


def warm_up_and_cosine(share: float, lowest: float = 0.0, warm_up: float = 0.1) -> float:
    """A linear ramp from 0 to 1 over the first tenth, then a cosine down to `lowest`."""
    if share < warm_up:
        return max(share, 1e-3) / warm_up
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warm_up) / (1 - warm_up))))
    return lowest + (1 - lowest) * cosine
