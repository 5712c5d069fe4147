"""Others' optimizers, with a learning rate and without, as they are installed.

To add one, write a function that returns its `Method`, and name it in `bench.optimizers.METHODS`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.gen import GeN
from bench.method import Closure, Method, lr_of, plain_step, warm_up_and_cosine
from bench.peers import peer


def adam() -> Method:
    return Method(
        name="Adam",
        settings="lr=1e-3",
        build=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
        step=plain_step,
        step_size=lr_of,
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

    return Method(name, settings or f"lr={lr:g}", build, plain_step, lr_of, factor)


GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def tuned_adamw(lr: float = math.nan) -> Method:
    """AdamW with one learning rate of the grid, or one still to be chosen from it."""
    settings = f"lr={lr:g}, warm-up and cosine"
    method = adamw("AdamW, tuned", settings, lr, warm_up_and_cosine)
    return replace(method, grid=GRID, chosen_lr=lr)


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

    return Method("schedule-free", "AdamW 1.4.1, default lr=0.0025", build, plain_step, lr_of)


def gen() -> Method:
    def step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
        return optimizer.train_step(closure)  # type: ignore[attr-defined]

    settings = "gen-optim 0.1.1 with AdamW, lr=1e-4 to begin with, every 4th step"
    return Method("GeN", settings, lambda model: GeN(model.parameters()), step, lr_of)


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


ADAM = adam()
