"""FusedSaLSa's settings that are compared, and with which others' optimizers."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bench import peers
from bench.methods import Factor, Method, adamw, closure_step, linear_end, tuned_adamw
from salsa_fused import FusedSaLSa, units
from salsa_fused.settings import ADAM_SLS, LR_DISTRIBUTION, PAPER, SGD_SALSA, SGD_SLS

# As much as to say that the number of steps is known: budgets are of work, not of steps.
NEVER = 10**9


def fused_salsa(
    name: str = "FusedSaLSa", settings: str = "no learning rate, all defaults",
    factor: Factor | None = None, *,
    groups: Callable[[nn.Module], Any] = nn.Module.parameters, **options: Any,
) -> Method:  # fmt: skip
    def build(model: nn.Module, params: Any = None, clip: float | None = None) -> Optimizer:
        params = groups(model) if params is None else params
        return FusedSaLSa(params, module=model, **{"max_grad_norm": clip, **options})

    return Method(name, settings, build, closure_step, factor=factor)


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
METHODS = (
    FUSED_SALSA,
    fused_salsa("FusedSaLSa, total_steps", "the number of steps is known", linear_end,
                total_steps=NEVER),
    fused_salsa("FusedSaLSa, found", "look_back=False", look_back=False),
    fused_salsa("FusedSaLSa, PAPER", "the paper's constants", **PAPER),
    peers.AUTHORS_SALSA, adamw(), tuned_adamw(), peers.PRODIGY, peers.PRODIGY_COSINE,
    peers.D_ADAPTATION, peers.SCHEDULE_FREE, peers.GEN, peers.MOMO, peers.SPS_SAFE,
)  # fmt: skip
# The other systems of the papers, beside FusedSaLSa: `python -m bench train --family`.
FAMILY = (
    FUSED_SALSA,
    fused_salsa("Adam+SLS", "settings.ADAM_SLS", **ADAM_SLS),
    fused_salsa("SGD+SaLSa", "settings.SGD_SALSA", **SGD_SALSA),
    fused_salsa("SGD+SLS", "settings.SGD_SLS", **SGD_SLS),
    fused_salsa("PLASLS", 'units="groups"', groups=units_of, units="groups"),
    fused_salsa("LR distribution", "settings.LR_DISTRIBUTION", groups=distributed_units),
    fused_salsa("LAMBC", 'direction="lamb", eps=1e-6', direction="lamb", eps=1e-6),
    fused_salsa("Lion", 'direction="lion"', direction="lion"),
    fused_salsa("AdEMAMix", 'direction="ademamix"', direction="ademamix"),
)
