"""What closures do with losses and gradients: habits, mistakes, and whose gradients they leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._torch import local_of
from .kernels.memory import has_memory
from .warning import Once

SAME_DIRECTION = 1e-6  # 1 - cos, below which two gradients are of one loss

ACCUMULATED = (
    "gradients were there before step(closure), and the closure's own take their place: what was "
    "accumulated is thrown away. To accumulate, take loss = optimizer.evaluate(closure, 1 / n) of "
    "each micro-batch, call backward() on loss / n, and then step() without a closure (trainers: "
    "salsa_fused.integrations; Lightning's SaLSaCallback). Or run them in `with "
    "optimizer.first_evaluation():` and call step(closure, loss=total), where the closure returns "
    "the loss of all. Where the gradients are another loss's (a "
    "GAN's), or were changed in place, call optimizer.zero_grad() before step(closure)"
)

FOR_SOMETHING_ELSE = (
    "the closure calls backward() for something other than the loss that it returns: that loss' "
    "own gradient is used, and what the closure left in .grad is not. torch.autograd.grad() in "
    "place of that backward() silences this. (If it was that loss' backward(retain_graph=True) and "
    "the gradients were changed since, leave out retain_graph)"
)

NO_GRAPH = (
    "the loss that the closure returned does not depend on any parameter through autograd (it has "
    "no grad_fn): compute it from the model without .item(), .detach(), torch.no_grad() or "
    "torch.inference_mode(), and return it"
)

UNSCALED = (
    "the closure uses a GradScaler, but the search needs the loss as it is. Leave scaling and "
    "backward() outside of it: `with optimizer.first_evaluation(): loss = closure()`, "
    "`scaler.scale(loss).backward()`, `scaler.step(optimizer, closure, loss=loss)`, "
    "`scaler.update()`"
)


@dataclass
class Habits:
    """What earlier steps have shown of an optimizer's closures."""

    needs_graph: bool = False  # trials without a graph fail, or evaluate another function
    backward_is_for_the_loss: bool | None = None  # that a closure calls; None: not seen yet
    losses_agree: bool = True  # of evaluations at the same weights
    scale: float = 0.0  # the largest loss that was compared
    in_16_bits: bool = False  # a forward computes in them, whatever the weights are
    computes_loss: bool = False  # the last one did
    has_worked: bool = False  # one has
    zeroed: bool = False  # optimizer.zero_grad() was called
    marked: bool = False  # the gradients that the last step left
    once: Once = field(default_factory=Once)


def differentiated(loss: Tensor, parameters: Sequence[Tensor]) -> bool | None:
    """Return whether the gradients that are there are those of the loss; None: they are all 0."""
    gradient = gradient_of(loss, parameters)
    present = [parameter.grad for parameter in parameters]
    if gradient is None:
        return True
    if not any(map(is_something, present)):
        return None
    if not all(g is None or is_readable(g) for g in present):
        return True
    # the same up to rounding and one factor, as clipping gives
    ab, aa, bb = _dot(gradient, present), _dot(gradient, gradient), _dot(present, present)
    return ab >= (1.0 - SAME_DIRECTION) * math.sqrt(aa * bb)


def is_readable(gradient: Tensor) -> bool:
    """Return whether the gradient's memory is there: some free it and keep the tensor."""
    return gradient.layout != torch.strided or has_memory(local_of(gradient))


def is_something(gradient: Tensor | None) -> bool:
    """Return whether it is there, and not all zero; one whose memory was freed is nothing."""
    if gradient is None or not is_readable(gradient):
        return False
    return gradient.layout != torch.strided or bool(local_of(gradient).any())


def gradient_of(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None] | None:
    """Return the loss' gradient, and keep its graph; None where a backward() has freed it."""
    if loss.numel() != 1:
        return None
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        found = iter(torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True))
    except RuntimeError:
        return None
    return [next(found) if parameter.requires_grad else None for parameter in parameters]


def _dot(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> float:
    pairs = [(a, b) for a, b in zip(some, others) if a is not None and b is not None]
    return sum(float((a.to_dense().double() * b.to_dense().double()).sum()) for a, b in pairs)
