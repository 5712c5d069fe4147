"""Backend ``reference``: the three kernels in plain torch, for any device and floating dtype.

Slow and simple, and the arithmetic that every other backend repeats bit for bit (compare
``csrc/adam.h``): only mul, add, sub, div and a correctly rounded square root; torch's ``addcmul``,
``lerp`` and ``add(alpha=)`` round differently.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .interface import AdamClass, Launch, Row
from .layout import is_dense


class ReferenceBackend:
    name = "reference"

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        return None if weight.is_floating_point() else f"it has no kernel for {weight.dtype}"

    def first_trial(self, launch: Launch) -> Tensor:
        slope = torch.zeros((), dtype=_widest(launch.device), device=launch.device)
        for row in launch.rows:
            if row.gradient is not None:
                saved_view(launch, row).copy_(row.weight)
        launch.moved = True
        for row, g, c in _rows_with_gradient(launch):
            d = _trial_direction(row, g, c)
            row.weight.copy_(row.weight.to(g.dtype).sub(d.mul(c.step)))
            slope += g.mul(d).to(slope.dtype).sum() * c.slope_scale
        return slope

    def next_trial(self, launch: Launch) -> None:
        for row, g, c in _rows_with_gradient(launch):
            w = saved_view(launch, row).to(g.dtype)
            row.weight.copy_(w.sub(_trial_direction(row, g, c).mul(c.step)))

    def adam_step(self, launch: Launch) -> None:
        for row, g, c in _rows_with_gradient(launch):
            assert row.exp_avg is not None and row.exp_avg_sq is not None
            m = row.exp_avg.mul(c.beta1).add_(g.mul(c.one_minus_beta1))
            v = _second_moment(row, g, c)
            w = (row.weight if launch.saved is None else saved_view(launch, row)).to(g.dtype)
            d = m.mul(c.inv_bias1).div_(_preconditioner(v, c))
            row.weight.copy_(w.sub(d.add_(w.mul(c.weight_decay)).mul_(c.step)))
            row.exp_avg.copy_(m)
            row.exp_avg_sq.copy_(v)


def saved_view(launch: Launch, row: Row) -> Tensor:
    """The saved weights of a row, shaped like it (in its own memory order where that is dense)."""
    assert launch.saved is not None
    weight = row.weight
    if is_dense(weight):
        return launch.saved.as_strided(weight.shape, weight.stride(), row.saved_at)
    return launch.saved[row.saved_at : row.saved_at + weight.numel()].view(weight.shape)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Moments and arithmetic: float64 for float64 weights, fp32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def _rows_with_gradient(launch: Launch) -> list[tuple[Row, Tensor, AdamClass]]:
    dtype = compute_dtype(launch.dtype)
    classes = launch.classes
    if dtype == torch.float32:
        classes = [AdamClass(*[ctypes.c_float(x).value for x in c]) for c in classes]
    return [
        (row, row.gradient.to(dtype), classes[row.klass])
        for row in launch.rows
        if row.gradient is not None
    ]


def _second_moment(row: Row, g: Tensor, c: AdamClass) -> Tensor:
    assert row.exp_avg_sq is not None
    return row.exp_avg_sq.mul(c.beta2).add_(g.mul(c.one_minus_beta2).mul_(g))


def _preconditioner(v: Tensor, c: AdamClass) -> Tensor:
    return _root(v).mul_(c.inv_root_bias2).add_(c.eps)


def _trial_direction(row: Row, g: Tensor, c: AdamClass) -> Tensor:
    return g.div(_preconditioner(_second_moment(row, g, c), c))


def _root(x: Tensor) -> Tensor:
    """The correctly rounded root: torch's own is 1 ulp off for a fifth of all fp32 values."""
    if x.dtype == torch.float64 or x.device.type == "mps":
        return x.sqrt()
    return x.double().sqrt_().float()
