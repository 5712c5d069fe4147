"""Backend ``reference``: the kernels in plain torch, for any device and floating dtype.

Slow and simple.  Every other backend repeats its arithmetic bit for bit (see directions.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..directions import Scalars, decayed
from ..memory import compute_dtype
from ..rounding import key_of, random_bits, rounded_at_random
from ..work import Work


class ReferenceBackend:
    """See :class:`~salsa_fused.kernels.backend.Backend`."""

    name = title = "reference"
    devices: tuple[str, ...] = ()
    kernels, instead = "plain", "several times slower"
    chunk_size = 1 << 15  # not used: it goes row by row
    vector_bytes = 0

    def missing(self, device: torch.device) -> str | None:
        return None

    def describe(self) -> str:
        return "available: plain torch, any device and floating dtype, slow"

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        return None if weight.is_floating_point() else f"it has no kernel for {weight.dtype}"

    def first_trial(self, work: Work) -> Tensor:
        assert work.saved is not None
        slope = torch.zeros((), dtype=_widest(work.device), device=work.device)
        if work.beside.masters is None:
            for number in work.rows_with_gradient():
                work.saved.view(number).copy_(work.weights[number])
        work.saved.filled = True
        for row in _rows(work):
            d = work.direction.tried(row.g, row.moments, row.c)
            row.weight.copy_(row.before(work).sub(d.mul(row.size)))
            slope += _sum(row.g.mul(d)) * row.slope_scale
        return slope

    def next_trial(self, work: Work) -> None:
        for row in _rows(work):
            d = work.direction.tried(row.g, row.moments, row.c)
            row.weight.copy_(row.before(work).sub(d.mul(row.size)))

    def step(self, work: Work) -> Callable[[], None]:
        written: list[tuple[Tensor, Tensor]] = []
        for row in _rows(work):
            w = row.before(work)
            update, moments = work.direction.update(row.g, row.moments, row.c)
            new = w.sub(decayed(update, w, row.c).mul_(row.size))
            written += [(old, new) for old in row.written]
            written += zip(row.stored, row.rounded(moments, work))
        for i, (old, new) in enumerate(written):
            new = new.to(old.dtype)
            if work.skip is not None:
                new = torch.where(work.skip != 0, old, new)
            written[i] = (old, new)

        def write() -> None:
            for old, new in written:
                old.copy_(new)

        return write

    def trust_ratios(self, work: Work, clip: float) -> Tensor:
        w_norm, u_norm = squared_norms(work).sqrt().unbind(1)
        ratios = w_norm.div(u_norm).to(compute_dtype(work.dtype)).clamp(max=clip)
        return torch.where((w_norm == 0.0) | (u_norm == 0.0), 1.0, ratios)

    def alignment(self, work: Work) -> Tensor:
        dtype = compute_dtype(work.dtype)
        total = torch.zeros((), dtype=_widest(work.device), device=work.device)
        precise: list[Any] = work.weights if work.beside.masters is None else work.beside.masters
        for weight, g, start in zip(precise, work.gradients, work.window.tensors):
            if g is not None and start is not None:
                back = start.to(dtype).sub(weight.detach().to(dtype))
                total += _sum(g.to(dtype).mul(back))
        return total


def squared_norms(work: Work) -> Tensor:
    """Return, for every row, those of ``w`` and ``u`` (see ``Backend.trust_ratios``).

    They are 0 for rows that the kernel does not go over.
    """
    widest = _widest(work.device)
    squares = torch.zeros(len(work.weights), 2, dtype=widest, device=work.device)
    for row in _rows(work):
        w = row.written[0].to(row.g.dtype)
        update, _ = work.direction.update(row.g, row.moments, row.c)
        for place, x in enumerate((w, decayed(update, w, row.c))):
            squares[row.number, place] = x.to(widest).square().sum()
    return squares


class _Row(NamedTuple):
    number: int
    weight: Tensor
    written: list[Tensor]  # by the step: the weight, after its master where it has one
    g: Tensor  # in the precision of the arithmetic, as `moments`
    stored: list[Tensor]  # the moments as they lie there
    moments: list[Tensor]
    c: Scalars
    ratio: Tensor | None  # LAMB's

    @property
    def size(self) -> float | Tensor:
        return self.c.size if self.ratio is None else self.ratio * self.c.size

    @property
    def slope_scale(self) -> float | Tensor:
        return self.c.slope_scale if self.ratio is None else self.ratio * self.c.slope_scale

    def before(self, work: Work) -> Tensor:
        """Return the weights before the step, in the precision of the arithmetic."""
        weight = self.written[0] if work.saved is None else work.saved.view(self.number)
        return weight.to(self.g.dtype)

    def rounded(self, moments: list[Tensor], work: Work) -> list[Tensor]:
        """Return the moments as they are stored, the bf16 ones rounded at random."""
        if not work.beside.storage.rounds:
            return moments
        key = key_of(work.beside.numbers[self.number], self.c.t)
        return [
            rounded_at_random(new, random_bits(old, key), k) if old.dtype != new.dtype else new
            for k, (old, new) in enumerate(zip(self.stored, moments))
        ]


def _rows(work: Work) -> Iterator[_Row]:
    """Go over the rows that the kernel goes over and that have a gradient."""
    dtype = compute_dtype(work.dtype)
    scalars = work.scalars
    if dtype == torch.float32:  # each number is rounded once
        scalars = [Scalars(*[ctypes.c_float(x).value for x in one]) for one in scalars]
    for number in work.rows_with_gradient():
        gradient, weight = work.gradients[number], work.weights[number]
        master = None if work.beside.masters is None else work.beside.masters[number]
        found = [of_all[number] for of_all in work.moments]
        stored = [moment for moment in found if moment is not None]
        assert gradient is not None
        yield _Row(
            number,
            weight,
            [weight] if master is None else [master, weight],
            gradient.to(dtype),
            stored,
            [moment.to(dtype) for moment in stored],
            scalars[work.scalars_of[number]],
            None if work.ratios is None else work.ratios[number],
        )


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def _sum(products: Tensor) -> Tensor:
    return products.to(_widest(products.device)).sum()
