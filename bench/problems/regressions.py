"""Problems whose targets are numbers: a table of measurements, and a differential equation."""

from __future__ import annotations

from functools import partial

import torch

from bench.losses import MEAN_SQUARE
from bench.models import parameter_count
from bench.models.burgers import BurgersNet
from bench.models.small import mlp
from bench.problems.common import checkpoints
from bench.sets.batches import on, shuffled
from bench.sets.burgers import VISCOSITY, burgers
from bench.sets.heavy_tails import COLUMNS, heavy_tails
from bench.training import Problem

TAILS_STEPS, TAILS_BATCH = 2000, 32
BURGERS_STEPS, BURGERS_BATCH = 1500, 128


def tails_regression(device: torch.device, plain_steps: int = TAILS_STEPS) -> Problem:
    """An MLP on columns in units from 0.01 to 100, with outliers in inputs and targets."""
    train, validation = (on(device, part) for part in heavy_tails())
    model = partial(mlp, COLUMNS, 64, 64, 1)
    return Problem(
        case="tails-regression",
        title="regression, heavy tails",
        description=(
            f"{parameter_count(model()):,} parameters, inputs as they are; "
            f"{len(train.targets):,} rows of {COLUMNS}, batch {TAILS_BATCH}"
        ),
        evaluated_on="all its rows",
        model=model,
        batches=lambda generator: shuffled(train, TAILS_BATCH, generator),
        train_sample=[train],
        validation_sample=[validation],
        plain_steps=plain_steps,
        checkpoints=checkpoints(plain_steps),
        log_loss=True,
        loss=MEAN_SQUARE,
    )


def burgers_pinn(device: torch.device, plain_steps: int = BURGERS_STEPS) -> Problem:
    """A network that solves Burgers' equation: the closure holds derivatives of the network."""
    train, validation = (on(device, part) for part in burgers())
    model = partial(BurgersNet, VISCOSITY)
    return Problem(
        case="burgers-pinn",
        title="PINN for Burgers' equation",
        description=(
            f"{parameter_count(model()):,} parameters, tanh; "
            f"{len(train.targets):,} points, batch {BURGERS_BATCH}"
        ),
        evaluated_on=f"all its points, and the solution at {len(validation.targets)}",
        model=model,
        batches=lambda generator: shuffled(train, BURGERS_BATCH, generator),
        train_sample=[train],
        validation_sample=[validation],
        plain_steps=plain_steps,
        checkpoints=checkpoints(plain_steps),
        log_loss=True,
        loss=MEAN_SQUARE,
    )
