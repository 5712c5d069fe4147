"""Backend ``reference``: the kernels in plain torch, for any device and floating dtype.

Slow and simple, and the arithmetic that every other backend repeats bit for bit (compare
``csrc/adam.h``): only mul, add, sub, div and a correctly rounded square root; torch's ``addcmul``,
``lerp`` and ``add(alpha=)`` round differently.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .interface import AdamClass
from .launch import Launch
from .layout import compute_dtype


class ReferenceBackend:
    name = "reference"
    chunk_size = 1 << 15  # not used: it goes row by row
    vector_bytes = 0

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        return None if weight.is_floating_point() else f"it has no kernel for {weight.dtype}"

    def first_trial(self, launch: Launch) -> Tensor:
        slope = torch.zeros((), dtype=_widest(launch.device), device=launch.device)
        for index, gradient in enumerate(launch.gradients):
            if gradient is not None and launch.is_selected(index):
                launch.saved_view(index).copy_(launch.weights[index])
        launch.moved = True
        for row in _rows(launch):
            d = _trial_direction(launch, row)
            row.weight.copy_(row.weight.to(d.dtype).sub(d.mul(row.step)))
            slope += _sum(row.g.mul(d)) * row.slope_scale
        return slope

    def next_trial(self, launch: Launch) -> None:
        for row in _rows(launch):
            w = launch.saved_view(row.number).to(row.g.dtype)
            row.weight.copy_(w.sub(_trial_direction(launch, row).mul(row.step)))

    def adam_step(self, launch: Launch) -> Callable[[], None]:
        written: list[tuple[Tensor, Tensor]] = []
        for row in _rows(launch):
            g, c = row.g, row.c
            exp_avg, exp_avg_sq = row.moments
            m = _first_moment(exp_avg, g, c)
            v = _second_moment(exp_avg_sq, g, c)
            w = _before(launch, row)
            w = w.sub(_update(w, m, v, c).mul_(row.step))
            written += [(row.weight, w), (exp_avg, m), (exp_avg_sq, v)]
        return _write_unless_skipped(launch, written)

    def sgd_step(self, launch: Launch) -> Callable[[], None]:
        written: list[tuple[Tensor, Tensor]] = []
        for row in _rows(launch):
            w = _before(launch, row)
            d = row.g.add(w.mul(row.c.weight_decay))
            written.append((row.weight, w.sub(d.mul_(row.step))))
        return _write_unless_skipped(launch, written)

    def trust_ratios(self, launch: Launch, clip: float) -> Tensor:
        dtype = compute_dtype(launch.dtype)
        ratios = torch.ones(len(launch.weights), dtype=dtype, device=launch.device)
        for row in _rows(launch):
            exp_avg, exp_avg_sq = row.moments
            w = row.weight.to(dtype)
            m = _first_moment(exp_avg, row.g, row.c)
            u = _update(w, m, _second_moment(exp_avg_sq, row.g, row.c), row.c)
            w_norm, u_norm = (x.to(_widest(x.device)).square().sum().sqrt() for x in (w, u))
            ratio = w_norm.div(u_norm).to(dtype).clamp(max=clip)
            ratio = torch.where((w_norm == 0.0) | (u_norm == 0.0), 1.0, ratio)
            ratios[row.number] = ratio
        return ratios

    def alignment(self, launch: Launch) -> Tensor:
        dtype = compute_dtype(launch.dtype)
        total = torch.zeros((), dtype=_widest(launch.device), device=launch.device)
        for weight, g, start in zip(launch.weights, launch.gradients, launch.window_starts):
            if g is not None and start is not None:
                back = start.to(dtype).sub(weight.detach().to(dtype))
                total += _sum(g.to(dtype).mul(back))
        return total


class _Row(NamedTuple):
    number: int
    weight: Tensor
    g: Tensor  # in the precision of the arithmetic
    exp_avg: Tensor | None  # SGD has neither
    exp_avg_sq: Tensor | None
    c: AdamClass
    ratio: Tensor | None  # LAMB's

    @property
    def step(self) -> float | Tensor:
        return self.c.step if self.ratio is None else self.ratio * self.c.step

    @property
    def slope_scale(self) -> float | Tensor:
        return self.c.slope_scale if self.ratio is None else self.ratio * self.c.slope_scale

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        assert self.exp_avg is not None and self.exp_avg_sq is not None
        return self.exp_avg, self.exp_avg_sq


def _rows(launch: Launch) -> Iterator[_Row]:
    """The rows that are gone over and have a gradient in this step."""
    dtype = compute_dtype(launch.dtype)
    classes = launch.classes
    if dtype == torch.float32:  # each scalar is rounded once
        classes = [AdamClass(*[ctypes.c_float(x).value for x in c]) for c in classes]
    for index, gradient in enumerate(launch.gradients):
        if gradient is not None and launch.is_selected(index):
            yield _Row(
                index,
                launch.weights[index],
                gradient.to(dtype),
                launch.exp_avgs[index],
                launch.exp_avg_sqs[index],
                classes[launch.klass[index]],
                None if launch.ratios is None else launch.ratios[index],
            )


def _before(launch: Launch, row: _Row) -> Tensor:
    """The weights before the step, in the precision of the arithmetic."""
    weight = row.weight if launch.saved is None else launch.saved_view(row.number)
    return weight.to(row.g.dtype)


def _write_unless_skipped(
    launch: Launch, written: list[tuple[Tensor, Tensor]]
) -> Callable[[], None]:
    """Writes each pair's second over its first."""
    for i, (old, new) in enumerate(written):
        new = new.to(old.dtype)
        if launch.skip is not None:
            new = torch.where(launch.skip != 0, old, new)
        written[i] = (old, new)

    def write() -> None:
        for old, new in written:
            old.copy_(new)

    return write


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def _sum(products: Tensor) -> Tensor:
    return products.to(_widest(products.device)).sum()


def _first_moment(exp_avg: Tensor, g: Tensor, c: AdamClass) -> Tensor:
    return exp_avg.mul(c.beta1).add_(g.mul(c.one_minus_beta1))


def _update(w: Tensor, m: Tensor, v: Tensor, c: AdamClass) -> Tensor:
    """The bracket of equation (2), with decay; LAMB's u."""
    return m.mul(c.inv_bias1).div_(_preconditioner(v, c)).add_(w.mul(c.weight_decay))


def _second_moment(exp_avg_sq: Tensor, g: Tensor, c: AdamClass) -> Tensor:
    return exp_avg_sq.mul(c.beta2).add_(g.mul(c.one_minus_beta2).mul_(g))


def _preconditioner(v: Tensor, c: AdamClass) -> Tensor:
    return _root(v).mul_(c.inv_root_bias2).add_(c.eps)


def _trial_direction(launch: Launch, row: _Row) -> Tensor:
    """-d of equation (3), or SGD's."""
    if launch.direction == "sgd":
        return row.g
    _, exp_avg_sq = row.moments
    return row.g.div(_preconditioner(_second_moment(exp_avg_sq, row.g, row.c), row.c))


def _root(x: Tensor) -> Tensor:
    """The correctly rounded root: torch's own is 1 ulp off for a fifth of all fp32 values."""
    if x.dtype == torch.float64 or x.device.type == "mps":
        return x.sqrt()
    return x.double().sqrt_().float()
