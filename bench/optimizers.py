"""The optimizers that are compared: how each is built, and what a step with a closure is for it.

The closure is the same for all: it computes the loss of one batch and returns it, nothing else.
To add an optimizer, write a function that returns its `Method`, and name it in `METHODS`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.gen import GeN
from bench.peers import peer
from salsa_fused import FusedSaLSa, units
from salsa_fused.settings import ADAM_SLS, LR_DISTRIBUTION, PAPER, SGD_SALSA, SGD_SLS

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


# --- what a step is -------------------------------------------------------------------------------


def plain_step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    """The ordinary training step of torch: one forward, one backward."""
    optimizer.zero_grad()
    loss = closure()
    loss.backward()
    optimizer.step()
    return loss.detach()


def closure_step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    """FusedSaLSa's step: it calls the closure, and runs zero_grad and backward itself."""
    return optimizer.step(closure)  # type: ignore[arg-type, return-value]


def authors_step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    """The authors' package tells its closure whether it wants gradients; and it prints."""

    def theirs(backwards: bool = False) -> Tensor:
        if not backwards:
            with torch.no_grad():
                return closure()
        optimizer.zero_grad()
        loss = closure()
        loss.backward()
        return loss

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        loss = optimizer.step(theirs)  # type: ignore[arg-type]
    return torch.as_tensor(loss).detach()


def _lr(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]


def _found(optimizer: torch.optim.Optimizer) -> float:
    """What FusedSaLSa applies: the step size that it found, times the factor."""
    return optimizer.step_size * _lr(optimizer)  # type: ignore[attr-defined]


# --- schedules, over the share of the work that is done -------------------------------------------


def cosine_end(share: float) -> float:
    """1 over the first half, then a cosine down to 0."""
    return 1.0 if share < 0.5 else 0.5 * (1 + math.cos(math.pi * (2 * share - 1)))


def warm_up_and_cosine(share: float, warm_up: float = 0.1) -> float:
    """A linear ramp from 0 to 1 over the first tenth, then a cosine down to 0."""
    if share < warm_up:
        return max(share, 1e-3) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))


# --- the optimizers -------------------------------------------------------------------------------


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
    return Method(name, settings, build, closure_step, _found, factor, unit_sizes=sizes)


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


def adam() -> Method:
    return Method(
        name="Adam",
        settings="lr=1e-3",
        build=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
        step=plain_step,
        step_size=_lr,
    )


def adamw(
    name: str = "AdamW",
    settings: str = "",
    lr: float = 1e-3,
    factor: Callable[[float], float] | None = None,
    **how: bool,
) -> Method:
    """As torch builds it by default, on a CPU a loop over tensors; `fused=True` is faster."""

    def build(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=lr, **how)  # type: ignore[arg-type]

    return Method(name, settings or f"lr={lr:g}", build, plain_step, _lr, factor)


GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def tuned_adamw(lr: float = math.nan) -> Method:
    """AdamW with one learning rate of the grid, or one still to be chosen from it."""
    settings = f"lr={lr:g}, warm-up and cosine"
    method = adamw("AdamW, tuned", settings, lr, warm_up_and_cosine)
    return replace(method, grid=GRID, chosen_lr=lr)


def authors_salsa() -> Method:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        return peer("salsa.SaLSA").SaLSA(list(model.parameters()))

    def step_size(optimizer: torch.optim.Optimizer) -> float:
        return float(optimizer.step_size)  # type: ignore[attr-defined]

    return Method("authors' SaLSa", "SaLSa-Optimizer 0.1.0", build, authors_step, step_size)


def _adapted(optimizer: torch.optim.Optimizer) -> float:
    group = optimizer.param_groups[0]
    return float(group["d"]) * group["lr"]


def prodigy(
    name: str = "Prodigy",
    settings: str = "1.1.2, defaults",
    factor: Callable[[float], float] | None = None,
) -> Method:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        return peer("prodigyopt").Prodigy(model.parameters())

    return Method(name, settings, build, plain_step, _adapted, factor)


def d_adaptation() -> Method:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        return peer("dadaptation").DAdaptAdam(model.parameters())

    return Method("D-Adaptation", "DAdaptAdam 3.2, defaults", build, plain_step, _adapted)


def schedule_free() -> Method:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = peer("schedulefree").AdamWScheduleFree(model.parameters())
        optimizer.train()
        return optimizer

    return Method("schedule-free", "AdamW 1.4.1, default lr=0.0025", build, plain_step, _lr)


def gen() -> Method:
    def step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
        return optimizer.train_step(closure)  # type: ignore[attr-defined]

    settings = "gen-optim 0.1.1 with AdamW, lr=1e-4 to begin with, every 4th step"
    return Method("GeN", settings, lambda model: GeN(model.parameters()), step, _lr)


def told_step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    """Of optimizers that want to know the loss."""
    optimizer.zero_grad()
    loss = closure()
    loss.backward()
    step: Any = optimizer.step
    step(loss=loss)
    return loss.detach()


def momo() -> Method:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        return peer("momo").MomoAdam(model.parameters())

    # Its step size is at most lr=0.01; what it is, the package keeps to itself.
    return Method("MoMo", "MomoAdam 0.1.0, defaults", build, told_step, lambda _: math.nan)


def sps_safe() -> Method:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        return peer("sps_safe").IMA_SPS_safe(model.parameters())

    def step_size(optimizer: torch.optim.Optimizer) -> float:
        return float(optimizer.ss)  # type: ignore[attr-defined]

    return Method("SPS-safe", "IMA_SPS_safe 1.0.0, defaults", build, told_step, step_size)


FUSED_SALSA = fused_salsa()
ADAM = adam()

# What `python -m bench train` compares, in the order of its tables.
METHODS: tuple[Callable[[], Method], ...] = (
    fused_salsa,
    partial(fused_salsa, "FusedSaLSa, cosine", "cosine over the last half", cosine_end),
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
