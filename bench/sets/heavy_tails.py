"""A regression as tables of measurements have it: columns in different units, and outliers."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.sets.batches import Batch

COLUMNS = 16
UNITS = (-2, 2)  # powers of ten between which the columns' scales are spread
FREEDOM = 3  # degrees of Student's t: its variance is finite, its kurtosis is not


def heavy_tails(rows: int = 4000, validation: int = 1000, seed: int = 0) -> tuple[Batch, Batch]:
    """Inputs (rows, 16) and targets (rows, 1), as (training, validation), the same each time.

    The target is a smooth function of the columns, as they were before they got their units, and
    noise with heavy tails.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = student(rows, COLUMNS, generator)
    slopes = torch.randn(COLUMNS, 6, generator=generator) / COLUMNS**0.5
    targets = torch.tanh(columns @ slopes).sum(1, keepdim=True) + columns[:, :1]
    targets += 0.5 * student(rows, 1, generator)
    units = torch.logspace(*UNITS, COLUMNS)[torch.randperm(COLUMNS, generator=generator)]
    inputs = columns * units
    cut = rows - validation
    return Batch(inputs[:cut], targets[:cut]), Batch(inputs[cut:], targets[cut:])


def student(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Student's t: a normal number over the root mean square of `FREEDOM` others."""
    normal = torch.randn(FREEDOM + 1, rows, columns, generator=generator)
    return normal[0] / normal[1:].square().mean(0).sqrt()
