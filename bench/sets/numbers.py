"""Data sets that are made: a table of measurements with outliers, and Burgers' equation."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bench.sets.batches import Batch

COLUMNS = 16
UNITS = (-2, 2)  # powers of ten between which the columns' scales are spread
FREEDOM = 3  # degrees of Student's t: its variance is finite, its kurtosis is not
GRID = (41, 20)  # points of x and of t where Burgers' equation's solution is compared
VISCOSITY = 0.02  # a front of width 0.04 forms at x = 0 around t = 0.4


def heavy_tails(rows: int = 4000, validation: int = 1000, seed: int = 0) -> tuple[Batch, Batch]:
    """Inputs (rows, 16) and targets (rows, 1), as (training, validation), the same each time.

    The columns are in different units. The target is a smooth function of them, as they were before
    they got their units, and noise with heavy tails.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = _student(rows, COLUMNS, generator)
    slopes = torch.randn(COLUMNS, 6, generator=generator) / COLUMNS**0.5
    targets = torch.tanh(columns @ slopes).sum(1, keepdim=True) + columns[:, :1]
    targets += 0.5 * _student(rows, 1, generator)
    units = torch.logspace(*UNITS, COLUMNS)[torch.randperm(COLUMNS, generator=generator)]
    inputs = columns * units
    cut = rows - validation
    return Batch(inputs[:cut], targets[:cut]), Batch(inputs[cut:], targets[cut:])


def _student(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Student's t: a normal number over the root mean square of `FREEDOM` others."""
    normal = torch.randn(FREEDOM + 1, rows, columns, generator=generator)
    return normal[0] / normal[1:].square().mean(0).sqrt()


def burgers(inside: int = 2048, edge: int = 512, seed: int = 0) -> tuple[Batch, Batch]:
    """Rows (x, t, inside) and what is expected there, as (training, validation).

    For u(x, 0) = -sin(pi x) and u(-1, t) = u(1, t) = 0, t up to 1. Training has points inside of
    the domain, where the equation's residual is to be 0, and points on its edge, where u is known;
    validation has the solution on a grid.
    """
    generator = torch.Generator().manual_seed(seed)
    x, t = 2 * torch.rand(inside, generator=generator) - 1, torch.rand(inside, generator=generator)
    within = torch.stack((x, t, torch.ones(inside)), 1)
    x, t = 2 * torch.rand(edge, generator=generator) - 1, torch.rand(edge, generator=generator)
    at_start = torch.arange(edge) < edge // 2
    x, t = torch.where(at_start, x, x.sign()), torch.where(at_start, 0.0, t)
    on_edge = torch.stack((x, t, torch.zeros(edge)), 1)
    known = torch.where(at_start, -torch.sin(math.pi * x), 0.0)
    train = Batch(torch.cat((within, on_edge)), torch.cat((torch.zeros(inside), known))[:, None])

    ends = torch.linspace(-1, 1, GRID[0]), torch.linspace(0.05, 1, GRID[1])
    x, t = torch.meshgrid(*ends, indexing="ij")
    grid = torch.stack((x.flatten(), t.flatten(), torch.zeros(x.numel())), 1)
    return train, Batch(grid, solution(grid[:, 0], grid[:, 1])[:, None])


def solution(x: Tensor, t: Tensor, viscosity: float = VISCOSITY, nodes: int = 100) -> Tensor:
    """By the Cole-Hopf transform, whose integrals Gauss-Hermite quadrature gives; t > 0."""
    eta, weights = np.polynomial.hermite.hermgauss(nodes)
    y = x.double().numpy()[:, None] - np.sqrt(4 * viscosity * t.double().numpy())[:, None] * eta
    potential = np.exp(-(np.cos(math.pi * y) + 1) / (2 * math.pi * viscosity)) * weights
    u = -(np.sin(math.pi * y) * potential).sum(1) / potential.sum(1)
    return torch.from_numpy(u).to(x.dtype)
