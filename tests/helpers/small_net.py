"""A small network with its batches and closures, which the tests train."""

from __future__ import annotations

import torch
from seeds import seed_torch
from torch import nn


def make_net(seed: int = 0, dropout: float = 0.2, norm: bool = True) -> nn.Module:
    """Build a network with dropout and BatchNorm: random streams and buffers matter."""
    seed_torch(seed)
    layers = [nn.Linear(6, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.Tanh()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(16, 1))


def make_batch(step: int = 0, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets that depend on the step alone."""
    random = torch.Generator().manual_seed(10_000 + step)
    x = torch.randn(size, 6, generator=random)
    return x, x[:, :1] * x[:, 1:2] + 0.1 * torch.randn(size, 1, generator=random)


def make_closure(net: nn.Module, step: int = 0):
    """Return a closure that computes the loss of a step's batch."""
    x, y = make_batch(step)

    def closure() -> torch.Tensor:
        dtype = next(net.parameters()).dtype
        loss_dtype = torch.promote_types(dtype, torch.float32)
        return (net(x.to(dtype)).to(loss_dtype) - y).square().mean()

    return closure
