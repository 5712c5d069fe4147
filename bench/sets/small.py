"""Data sets without a download: scikit-learn's digits, a table with outliers, Burgers' equation."""

import math

import numpy as np
import torch
from torch import Tensor

from bench.sets.batches import Batch, split

COLUMNS = 16
FREEDOM = 3  # degrees of Student's t: its variance is finite, its kurtosis is not
VISCOSITY = 0.02  # a front of width 0.04 forms at x = 0 around t = 0.4


def digits() -> tuple[Batch, Batch]:
    """1797 images of 8x8 grey levels, as (training, validation), the same each time."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
    return split(Batch(inputs, torch.tensor(labels)), 0.2)


def with_wrong_labels(data: Batch, share: float) -> Batch:
    """`share` of the labels, always the same, each replaced by one of the other nine classes."""
    generator, count = torch.Generator().manual_seed(0), len(data.targets)
    wrong = torch.randperm(count, generator=generator)[: round(share * count)]
    targets = data.targets.clone()
    targets[wrong] += torch.randint(1, 10, (len(wrong),), generator=generator)
    return Batch(data.inputs, targets % 10)


def of_classes(data: Batch, classes: range, each: int | None = None) -> Batch:
    """Only these classes, numbered from 0; the first `each` images of every one, or all."""
    chosen = torch.cat([(data.targets == label).nonzero()[:each, 0] for label in classes])
    return Batch(data.inputs[chosen], data.targets[chosen] - classes.start)


def heavy_tails(rows: int = 4000, validation: int = 1000) -> tuple[Batch, Batch]:
    """Inputs (rows, 16) and targets (rows, 1), as (training, validation), the same each time.

    The columns are in different units, from 0.01 to 100. The target is a smooth function of them,
    as they were before they got their units, and noise with heavy tails.
    """
    generator = torch.Generator().manual_seed(0)
    columns = _student(rows, COLUMNS, generator)
    slopes = torch.randn(COLUMNS, 6, generator=generator) / COLUMNS**0.5
    targets = torch.tanh(columns @ slopes).sum(1, keepdim=True) + columns[:, :1]
    targets += 0.5 * _student(rows, 1, generator)
    units = torch.logspace(-2, 2, COLUMNS)[torch.randperm(COLUMNS, generator=generator)]
    inputs, cut = columns * units, rows - validation
    return Batch(inputs[:cut], targets[:cut]), Batch(inputs[cut:], targets[cut:])


def _student(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Student's t: a normal number over the root mean square of `FREEDOM` others."""
    normal = torch.randn(FREEDOM + 1, rows, columns, generator=generator)
    return normal[0] / normal[1:].square().mean(0).sqrt()


def burgers(inside: int = 2048, edge: int = 512) -> tuple[Batch, Batch]:
    """Rows (x, t, inside) and what is expected there, as (training, validation).

    For u(x, 0) = -sin(pi x) and u(-1, t) = u(1, t) = 0, t up to 1. Training has points inside of
    the domain, where the equation's residual is to be 0, and points on its edge, where u is known;
    validation has the solution on a grid.
    """
    generator = torch.Generator().manual_seed(0)
    x, t = 2 * torch.rand(inside, generator=generator) - 1, torch.rand(inside, generator=generator)
    within = torch.stack((x, t, torch.ones(inside)), 1)
    x, t = 2 * torch.rand(edge, generator=generator) - 1, torch.rand(edge, generator=generator)
    at_start = torch.arange(edge) < edge // 2
    x, t = torch.where(at_start, x, x.sign()), torch.where(at_start, 0.0, t)
    on_edge = torch.stack((x, t, torch.zeros(edge)), 1)
    known = torch.where(at_start, -torch.sin(math.pi * x), 0.0)
    train = Batch(torch.cat((within, on_edge)), torch.cat((torch.zeros(inside), known))[:, None])

    x, t = torch.cartesian_prod(torch.linspace(-1, 1, 41), torch.linspace(0.05, 1, 20)).unbind(1)
    return train, Batch(torch.stack((x, t, torch.zeros(len(x))), 1), solution(x, t)[:, None])


def solution(x: Tensor, t: Tensor) -> Tensor:
    """By the Cole-Hopf transform, whose integrals Gauss-Hermite quadrature gives; t > 0."""
    eta, weights = np.polynomial.hermite.hermgauss(100)
    y = x.double().numpy()[:, None] - np.sqrt(4 * VISCOSITY * t.double().numpy())[:, None] * eta
    potential = np.exp(-(np.cos(math.pi * y) + 1) / (2 * math.pi * VISCOSITY)) * weights
    u = -(np.sin(math.pi * y) * potential).sum(1) / potential.sum(1)
    return torch.from_numpy(u).to(x.dtype)
