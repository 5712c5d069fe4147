"""Copies of all that a step may change, and their comparison."""

from __future__ import annotations

import torch
from torch import nn


def everything(net: nn.Module, optimizer) -> list:
    """Return all that a step may change: weights, buffers, moments, search state, streams."""
    tensors = [*net.state_dict().values()]
    for entry in optimizer.state.values():
        tensors += [v for v in entry.values() if isinstance(v, torch.Tensor)]
    numbers = [
        [(k, v) for k, v in group.items() if k != "params"] for group in optimizer.param_groups
    ]
    counts = [entry["step"] for entry in optimizer.state.values()]
    return [[t.clone() for t in (*tensors, torch.get_rng_state())], numbers, counts]


def assert_same(before: list, after: list) -> None:
    """Compare two results of `everything` bit for bit."""
    assert len(before[0]) == len(after[0])
    assert all(map(torch.equal, before[0], after[0]))
    assert before[1:] == after[1:]
