"""FusedSaLSa's settings that are compared, and with which others' optimizers.

To add an optimizer, write a function that returns its `Method`, and name it in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.method import Closure, Method, cosine_end, lr_of
from bench.others import (
    adamw,
    authors_salsa,
    d_adaptation,
    gen,
    momo,
    prodigy,
    schedule_free,
    sps_safe,
    tuned_adamw,
)
from salsa_fused import FusedSaLSa, units
from salsa_fused.settings import ADAM_SLS, LR_DISTRIBUTION, PAPER, SGD_SALSA, SGD_SLS


def closure_step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    """FusedSaLSa's step: it calls the closure, and runs zero_grad and backward itself."""
    return optimizer.step(closure)  # type: ignore[arg-type, return-value]


NEVER = 10**9  # steps


def linear_end(share: float) -> float:
    """What ``total_steps`` does, over the share of the work: 1, then linearly to 0."""
    return min(1.0, max(2 * (1 - share), 1e-3))


def _applied(optimizer: torch.optim.Optimizer) -> float:
    """What FusedSaLSa applies, with the factor."""
    return optimizer.applied_step_size * lr_of(optimizer)  # type: ignore[attr-defined]


def fused_salsa(
    name: str = "FusedSaLSa",
    settings: str = "no learning rate, all defaults",
    factor: Callable[[float], float] | None = None,
    groups: Callable[[nn.Module], Any] = nn.Module.parameters,
    **options: Any,
) -> Method:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        return FusedSaLSa(groups(model), module=model, **options)

    sizes = _unit_sizes if options.get("units") == "groups" else None
    return Method(
        name, settings, build, closure_step, _applied, factor, unit_sizes=sizes, ours=True
    )


def _unit_sizes(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {group["name"]: group["step_size"] for group in optimizer.param_groups}


def units_of(model: nn.Module) -> list[dict[str, Any]]:
    """Ten units, or as many as a transformer's layers give; any other model is cut by depth."""
    try:
        return units.transformer_units(model)
    except ValueError:
        return units.units_by_depth(model, n=min(10, len(list(model.parameters()))))


def distributed_units(model: nn.Module) -> list[dict[str, Any]]:
    """The units with the published factors; blocks of fewer layers take those at their depth."""
    formed = units_of(model)
    first, *blocks, last = LR_DISTRIBUTION
    between = len(formed) - 2
    chosen = [first, *(blocks[i * len(blocks) // between] for i in range(between)), last]
    return [{**unit, "lr": factor} for unit, factor in zip(formed, chosen, strict=True)]


FUSED_SALSA = fused_salsa()

# What `python -m bench train` compares, in the order of its tables.
METHODS: tuple[Callable[[], Method], ...] = (
    fused_salsa,
    partial(
        fused_salsa,
        "FusedSaLSa, total_steps",
        "the number of steps is known",
        linear_end,
        total_steps=NEVER,  # as much as to say that it is known: budgets are of work, not of steps
    ),
    partial(fused_salsa, "FusedSaLSa, found", "look_back=False", look_back=False),
    partial(fused_salsa, "FusedSaLSa, PAPER", "the paper's constants", **PAPER),
    authors_salsa,
    adamw,
    tuned_adamw,
    prodigy,
    partial(prodigy, "Prodigy, cosine", "1.1.2, cosine over the last half", cosine_end),
    d_adaptation,
    schedule_free,
    gen,
    momo,
    sps_safe,
)

# The other systems of the papers, beside FusedSaLSa: `python -m bench train --family`.
FAMILY: tuple[Callable[[], Method], ...] = (
    fused_salsa,
    partial(fused_salsa, "Adam+SLS", "settings.ADAM_SLS", **ADAM_SLS),
    partial(fused_salsa, "SGD+SaLSa", "settings.SGD_SALSA", **SGD_SALSA),
    partial(fused_salsa, "SGD+SLS", "settings.SGD_SLS", **SGD_SLS),
    partial(fused_salsa, "PLASLS", 'units="groups"', groups=units_of, units="groups"),
    partial(fused_salsa, "LR distribution", "settings.LR_DISTRIBUTION", groups=distributed_units),
    partial(fused_salsa, "LAMBC", 'direction="lamb", eps=1e-6', direction="lamb", eps=1e-6),
)
