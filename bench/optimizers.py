"""The optimizers that are compared: how each is built, and what a step with a closure is for it.

The closure is the same for all: it computes the loss of one batch and returns it, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Closure = Callable[[], Tensor]


@dataclass(frozen=True)
class Method:
    name: str
    settings: str  # in words, for captions
    build: Callable[[nn.Module], torch.optim.Optimizer]
    step: Callable[[torch.optim.Optimizer, Closure], Tensor]
    step_size: Callable[[torch.optim.Optimizer], float]  # of the step that was just taken


def _plain_step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    """The ordinary training step of torch: one forward, one backward."""
    optimizer.zero_grad()
    loss = closure()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _closure_step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    """FusedSaLSa's step: it calls the closure, and runs zero_grad and backward itself."""
    return optimizer.step(closure)  # type: ignore[arg-type, return-value]


def _fused_salsa(model: nn.Module) -> torch.optim.Optimizer:
    from salsa_fused import FusedSaLSa

    return FusedSaLSa(model.parameters(), module=model)


ADAM = Method(
    name="Adam",
    settings="lr=1e-3",
    build=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
    step=_plain_step,
    step_size=lambda optimizer: optimizer.param_groups[0]["lr"],
)
FUSED_SALSA = Method(
    name="FusedSaLSa",
    settings="no learning rate, all defaults",
    build=_fused_salsa,
    step=_closure_step,
    step_size=lambda optimizer: optimizer.step_size,  # type: ignore[attr-defined]
)
