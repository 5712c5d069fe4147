"""The papers' candidates with the papers' settings, and what is varied in them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bench.methods import Factor, Method, of_torch, tuned, warm_up_and_cosine
from bench.optimizers import FUSED_SALSA, distributed_units, fused_salsa, units_of
from bench.paper.fine_tuning import Epochs
from bench.training import Problem
from salsa_fused.settings import ADAM_SLS, PAPER, SGD_SALSA, SGD_SLS

ADAM_GRID = (2e-5, 1e-4, 3e-4, 1e-3, 3e-3)
SGD_GRID = (0.01, 0.03, 0.1, 0.3, 1.0)
LAMB_GRID = (1e-3, 3e-3, 1e-2, 3e-2, 0.1)


def of_lr(
    name: str, optimizer: Callable[..., Optimizer], grid: tuple[float, ...], factor: Factor | None,
    **options: Any,
) -> Method:  # fmt: skip
    """One of torch's; the schedule is the paper's: on text a warm-up and a cosine, else flat."""
    said = "warm-up and cosine" if factor else "flat"

    def make(lr: float) -> Method:
        return of_torch(name, f"lr={lr:g}, {said}", optimizer, factor, lr=lr, **options)

    return tuned(name, grid, make, said)


def factor_of(problem: Problem) -> Factor | None:
    """Section IV-A of arXiv 2407.20650: a schedule where it is common practice."""
    return None if problem.case.startswith(("digits", "cifar")) else warm_up_and_cosine


def adam(problem: Problem) -> Method:
    return of_lr("Adam", torch.optim.Adam, ADAM_GRID, factor_of(problem), fused=True)


def of_settings(name: str, settings: dict[str, Any], **more: Any) -> Method:
    options = {**settings, **more}
    return fused_salsa(name, ", ".join(f"{key}={value}" for key, value in options.items()),
                       **options)  # fmt: skip


ADAM_SALSA = of_settings("Adam+SaLSa", PAPER)
EVERY_STEP = of_settings("Adam+SaLSa, every step", PAPER, search_period=1)
SLS = of_settings("Adam+SLS", ADAM_SLS)
PLASLS = fused_salsa(
    "PLASLS", "Adam+SLS with a step size for each unit", groups=units_of,
    units="groups", **ADAM_SLS,
)  # fmt: skip


def candidates(problem: Problem) -> list[Method]:
    """The six of arXiv 2407.20650, and this package's defaults."""
    return [
        adam(problem),
        of_lr("SGD", torch.optim.SGD, SGD_GRID, factor_of(problem)),
        SLS,
        of_settings("SGD+SLS", SGD_SLS),
        ADAM_SALSA,
        of_settings("SGD+SaLSa", SGD_SALSA),
        FUSED_SALSA,
        fused_salsa("FusedSaLSa, total_steps", f"total_steps={problem.plain_steps}",
                    total_steps=problem.plain_steps),
    ]  # fmt: skip


def line_searches(_: Problem) -> list[Method]:
    return [SLS, ADAM_SALSA]


def with_and_without_schedule(problem: Problem) -> list[Method]:
    return [adam(problem), EVERY_STEP, ADAM_SALSA]


def of_c(_: Problem) -> list[Method]:
    return [of_settings(f"c={c:g}", PAPER, c=c) if c != PAPER["c"] else ADAM_SALSA
            for c in (0.1, 0.2, 0.3, 0.5, 0.7)]  # fmt: skip


def of_beta3(_: Problem) -> list[Method]:
    return [
        of_settings(f"beta3={beta3:g}", PAPER, betas=(0.9, 0.999, beta3))
        if beta3 != PAPER["betas"][2] else ADAM_SALSA
        for beta3 in (0.0, 0.9, 0.99, 0.999)
    ]  # fmt: skip


def of_period(_: Problem) -> list[Method]:
    return [FUSED_SALSA, *(of_settings(f"period up to {n}", {}, search_period=(1, n))
                           for n in (20, 50, 100))]  # fmt: skip


def by_batch(problem: Problem) -> list[Method]:
    """The authors' law is of their optimizer; ours is beside it where a step is cheap."""
    return [ADAM_SALSA] if problem.case.startswith("reviews") else [ADAM_SALSA, FUSED_SALSA]


def units(problem: Problem) -> list[Method]:
    return [adam(problem), SLS, PLASLS]


def distributions(problem: Problem) -> list[Method]:
    distributed = fused_salsa("FusedSaLSa, distributed", "settings.LR_DISTRIBUTION",
                              groups=distributed_units)  # fmt: skip
    flat = adam(problem)
    of_lr = {lr: _distributed(lr, one) for lr, one in flat.grid.items()}
    adam_distributed = replace(next(iter(of_lr.values())), settings=flat.settings, grid=of_lr)
    return [flat, adam_distributed, FUSED_SALSA, distributed]


def _distributed(lr: float, flat: Method) -> Method:
    """Factors as published: most of them 1, so that `lr` keeps its meaning."""

    def build(model: nn.Module, params: Any = None, clip: float | None = None) -> Optimizer:
        units = distributed_units(model)
        usual = sorted(unit["lr"] for unit in units)[len(units) // 2]
        groups = [{"params": unit["params"], "lr": lr * unit["lr"] / usual} for unit in units]
        return torch.optim.Adam(groups, fused=True)

    return replace(flat, name="Adam, distributed", build=build)


def trust_ratios(problem: Problem) -> list[Method]:
    def lamb(name: str, clip: float | None) -> Method:
        def make(lr: float) -> Method:
            said = f"lr={lr:g}, trust_clip={clip}, eps=1e-6"
            return fused_salsa(name, said, direction="lamb", trust_clip=clip, eps=1e-6, lr=lr,
                               init_step_size=1.0, search_period=None)  # fmt: skip

        return tuned(name, LAMB_GRID, make, f"flat, trust_clip={clip}")

    searched = of_settings("LAMBC+SaLSa", PAPER, direction="lamb", eps=1e-6)
    return [adam(problem), lamb("LAMB", None), lamb("LAMBC", 1.0), searched]


def until_done(problem: Problem) -> list[Method]:
    """Fixed epochs with a linear decay, the common practice, and adaptive fine-tuning."""
    lr = 1e-4 if problem.case.startswith("reviews") else 1e-3
    adamw = partial(of_torch, optimizer=torch.optim.AdamW, lr=lr, fused=True)

    def fixed(epochs: int) -> Epochs:
        said = f"AdamW, lr={lr:g}, warm-up and linear decay"
        return Epochs(**vars(adamw(f"{epochs} epochs", said, factor=warm_up_and_linear)),
                      epochs=epochs)  # fmt: skip

    return [fixed(5), fixed(20), Epochs(**vars(adamw("adaptive", f"AdamW, lr={lr:g}")))]


def warm_up_and_linear(share: float) -> float:
    """A ramp over the first tenth, then linearly down to 0."""
    return max(share, 1e-3) / 0.1 if share < 0.1 else max(1 - share, 0.0) / 0.9
