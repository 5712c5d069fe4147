"""Problems whose targets are numbers: a table of measurements, and a differential equation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from bench.losses import MEAN_SQUARE
from bench.models import parameter_count
from bench.models.burgers import BurgersNet
from bench.models.small import mlp
from bench.problems.common import checkpoints
from bench.sets.batches import Batch, on, shuffled
from bench.sets.burgers import VISCOSITY, burgers
from bench.sets.heavy_tails import COLUMNS, heavy_tails
from bench.training import Problem

TAILS_STEPS, TAILS_BATCH = 2000, 32
BURGERS_STEPS, BURGERS_BATCH = 1500, 128


def tails_regression(device: torch.device, plain_steps: int = TAILS_STEPS) -> Problem:
    """An MLP on columns in units from 0.01 to 100, with outliers in inputs and targets."""
    return _regression(
        device,
        plain_steps,
        case="tails-regression",
        title="regression, heavy tails",
        has="inputs as they are",
        of=f"rows of {COLUMNS}",
        evaluated_on="all its rows",
        model=partial(mlp, COLUMNS, 64, 64, 1),
        parts=heavy_tails(),
        batch=TAILS_BATCH,
    )


def burgers_pinn(device: torch.device, plain_steps: int = BURGERS_STEPS) -> Problem:
    """A network that solves Burgers' equation: the closure holds derivatives of the network."""
    parts = burgers()
    return _regression(
        device,
        plain_steps,
        case="burgers-pinn",
        title="PINN for Burgers' equation",
        has="tanh",
        of="points",
        evaluated_on=f"all its points, and the solution at {len(parts[1].targets)}",
        model=partial(BurgersNet, VISCOSITY),
        parts=parts,
        batch=BURGERS_BATCH,
    )


def _regression(
    device: torch.device,
    plain_steps: int,
    *,
    case: str,
    title: str,
    has: str,
    of: str,
    evaluated_on: str,
    model: Callable[[], nn.Module],
    parts: tuple[Batch, Batch],
    batch: int,
) -> Problem:
    train, validation = (on(device, part) for part in parts)
    return Problem(
        case=case,
        title=title,
        description=(
            f"{parameter_count(model()):,} parameters, {has}; "
            f"{len(train.targets):,} {of}, batch {batch}"
        ),
        evaluated_on=evaluated_on,
        model=model,
        batches=lambda generator: shuffled(train, batch, generator),
        train_sample=[train],
        validation_sample=[validation],
        plain_steps=plain_steps,
        checkpoints=checkpoints(plain_steps),
        log_loss=True,
        loss=MEAN_SQUARE,
    )
