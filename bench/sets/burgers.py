"""Points for Burgers' equation with u(x, 0) = -sin(pi x) and u(-1, t) = u(1, t) = 0, t up to 1."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bench.sets.batches import Batch

VISCOSITY = 0.02  # a front of width 0.04 forms at x = 0 around t = 0.4


def burgers(inside: int = 2048, edge: int = 512, seed: int = 0) -> tuple[Batch, Batch]:
    """Rows (x, t, inside) and what is expected there, as (training, validation).

    Training has points inside of the domain, where the equation's residual is to be 0, and points
    on its edge, where u is known; validation has the solution on a grid.
    """
    generator = torch.Generator().manual_seed(seed)
    x, t = 2 * torch.rand(inside, generator=generator) - 1, torch.rand(inside, generator=generator)
    within = torch.stack((x, t, torch.ones(inside)), 1)
    x, t = 2 * torch.rand(edge, generator=generator) - 1, torch.rand(edge, generator=generator)
    at_start = torch.arange(edge) < edge // 2
    x = torch.where(at_start, x, x.sign())
    t = torch.where(at_start, 0.0, t)
    on_edge = torch.stack((x, t, torch.zeros(edge)), 1)
    known = torch.where(at_start, -torch.sin(math.pi * x), 0.0)
    train = Batch(torch.cat((within, on_edge)), torch.cat((torch.zeros(inside), known))[:, None])

    x, t = torch.meshgrid(torch.linspace(-1, 1, 41), torch.linspace(0.05, 1, 20), indexing="ij")
    grid = torch.stack((x.flatten(), t.flatten(), torch.zeros(x.numel())), 1)
    return train, Batch(grid, solution(grid[:, 0], grid[:, 1])[:, None])


def solution(x: Tensor, t: Tensor, viscosity: float = VISCOSITY, nodes: int = 100) -> Tensor:
    """By the Cole-Hopf transform, whose integrals Gauss-Hermite quadrature gives; t > 0."""
    eta, weights = np.polynomial.hermite.hermgauss(nodes)
    y = x.double().numpy()[:, None] - np.sqrt(4 * viscosity * t.double().numpy())[:, None] * eta
    potential = np.exp(-(np.cos(math.pi * y) + 1) / (2 * math.pi * viscosity)) * weights
    u = -(np.sin(math.pi * y) * potential).sum(1) / potential.sum(1)
    return torch.from_numpy(u).to(x.dtype)
