"""FusedSaLSa's settings that are compared, and with which others' optimizers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench import methods
from bench.methods import Closure, Factor, Method
from salsa_fused import FusedSaLSa, units
from salsa_fused.settings import ADAM_SLS, LR_DISTRIBUTION, PAPER, SGD_SALSA, SGD_SLS

# As much as to say that the number of steps is known: budgets are of work, not of steps.
NEVER = 10**9


def closure_step(optimizer: Any, closure: Closure) -> Tensor:
    """FusedSaLSa's step: it calls the closure, and runs zero_grad and backward itself."""
    return optimizer.step(closure)


def linear_end(share: float) -> float:
    """What `total_steps` does, over the share of the work: 1, then linearly to 0."""
    return min(1.0, max(2 * (1 - share), 1e-3))


def applied_step_size(optimizer: Any) -> float:
    """What FusedSaLSa applies, with the factor; the learning rate of any other optimizer."""
    lr = optimizer.param_groups[0].get("lr", 1.0)
    return float(getattr(optimizer, "applied_step_size", 1.0) * lr)


def fused_salsa(
    name: str = "FusedSaLSa",
    settings: str = "no learning rate, all defaults",
    factor: Factor | None = None,
    groups: Callable[[nn.Module], Any] = nn.Module.parameters,
    **options: Any,
) -> Method:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        return FusedSaLSa(groups(model), module=model, **options)

    return Method(
        name, settings, build, closure_step, applied_step_size, factor,
        unit_sizes=_unit_sizes, ours=True,
    )  # fmt: skip


def _unit_sizes(optimizer: Any) -> dict[str, float]:
    groups = optimizer.param_groups
    return {one["name"]: one["step_size"] for one in groups if one["units"] == "groups"}


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
METHODS: tuple[Callable[..., Method], ...] = (
    fused_salsa,
    partial(
        fused_salsa, "FusedSaLSa, total_steps", "the number of steps is known", linear_end,
        total_steps=NEVER,
    ),
    partial(fused_salsa, "FusedSaLSa, found", "look_back=False", look_back=False),
    partial(fused_salsa, "FusedSaLSa, PAPER", "the paper's constants", **PAPER),
    methods.authors_salsa,
    methods.adamw,
    methods.tuned_adamw,
    methods.prodigy,
    methods.prodigy_cosine,
    methods.d_adaptation,
    methods.schedule_free,
    methods.gen,
    methods.momo,
    methods.sps_safe,
)  # fmt: skip

# The other systems of the papers, beside FusedSaLSa: `python -m bench train --family`.
FAMILY: tuple[Callable[..., Method], ...] = (
    fused_salsa,
    partial(fused_salsa, "Adam+SLS", "settings.ADAM_SLS", **ADAM_SLS),
    partial(fused_salsa, "SGD+SaLSa", "settings.SGD_SALSA", **SGD_SALSA),
    partial(fused_salsa, "SGD+SLS", "settings.SGD_SLS", **SGD_SLS),
    partial(fused_salsa, "PLASLS", 'units="groups"', groups=units_of, units="groups"),
    partial(fused_salsa, "LR distribution", "settings.LR_DISTRIBUTION", groups=distributed_units),
    partial(fused_salsa, "LAMBC", 'direction="lamb", eps=1e-6', direction="lamb", eps=1e-6),
    partial(fused_salsa, "Lion", 'direction="lion"', direction="lion"),
    partial(fused_salsa, "AdEMAMix", 'direction="ademamix"', direction="ademamix"),
)
