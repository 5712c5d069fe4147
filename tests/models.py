"""Small models and batches that the tests train."""

from __future__ import annotations

import torch
from torch import nn


def make_net(seed: int = 0, dropout: float = 0.2, norm: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.Tanh()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(16, 1))


def make_batch(step: int = 0, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(10_000 + step)
    x = torch.randn(size, 6, generator=random)
    return x, x[:, :1] * x[:, 1:2] + 0.1 * torch.randn(size, 1, generator=random)


def make_closure(net: nn.Module, step: int = 0):
    x, y = make_batch(step)

    def closure() -> torch.Tensor:
        dtype = next(net.parameters()).dtype
        loss_dtype = torch.promote_types(dtype, torch.float32)
        return (net(x.to(dtype)).to(loss_dtype) - y).square().mean()

    return closure


def everything(net: nn.Module, optimizer) -> list:
    """Every number that a step may change: weights, buffers, moments, search state, streams."""
    tensors = [*net.state_dict().values()]
    for entry in optimizer.state.values():
        tensors += [v for v in entry.values() if isinstance(v, torch.Tensor)]
    numbers = [
        [(k, v) for k, v in group.items() if k != "params"] for group in optimizer.param_groups
    ]
    counts = [entry["step"] for entry in optimizer.state.values()]
    return [[t.clone() for t in (*tensors, torch.get_rng_state())], numbers, counts]


def assert_same(before: list, after: list) -> None:
    assert len(before[0]) == len(after[0])
    assert all(map(torch.equal, before[0], after[0]))
    assert before[1:] == after[1:]
