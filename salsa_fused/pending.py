"""Numbers that a device holds and the host has not read yet.

The host waits for them in a search only.  They are the looks back of steps without a search
(:mod:`salsa_fused.look_back`), and how many steps the device has skipped by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Pending:
    """The looks in their order, and the count of skipped steps, since the host last read them."""

    def __init__(self) -> None:
        self.looks: list[Tensor] = []
        self.skips: Tensor | None = None

    def count_skip(self, flag: Tensor) -> None:
        """Count a step whose flag is up, on the device."""
        skipped = flag.ne(0.0).float()
        if self.skips is None:
            self.skips = skipped
        else:  # in place: on whatever stream, the memory stays this one
            self.skips += skipped.to(self.skips.device)

    def collect_skips(self) -> int:
        """Return the count, and begin it anew: the host waits for the device."""
        count = 0 if self.skips is None else int(self.skips.item())
        self.skips = None
        return count

    def collect_looks(self) -> list[float]:
        """Return the looks, and forget them: the host waits for the device."""
        looks = [look.item() for look in self.looks]
        self.looks = []
        return looks

    def read(
        self, loss: Tensor, slopes: list[Tensor], looks: list[Tensor], clipped_by: Tensor | None
    ) -> tuple[float, list[float], list[float], int]:
        """Read what a search needs: in one copy, with one wait, where all is on one device.

        ``slopes``: the slope's parts; ``clipped_by``: a factor on them, which is taken out.

        Returns:
            The loss, the slope's parts (not a number, all of them, where one is not finite), all
            looks and the count of skipped steps.  The latter two stay pending, for the step may
            fail.
        """
        looks = [*self.looks, *looks]
        more = [tensor for tensor in (clipped_by, self.skips) if tensor is not None]
        tensors = [*looks, loss.reshape(()), *slopes, *more]
        if len({tensor.device for tensor in tensors}) == 1:
            widest = (slopes or [loss])[0].dtype
            numbers = torch.stack([tensor.to(widest) for tensor in tensors]).tolist()
        else:
            numbers = [tensor.item() for tensor in tensors]
        count = 0 if self.skips is None else int(numbers.pop())
        factor = 1.0 if clipped_by is None else numbers.pop()
        looked, (first, *parts) = numbers[: len(looks)], numbers[len(looks) :]
        known = factor > 0.0 and all(map(math.isfinite, parts))
        parts = [part / factor if known else math.nan for part in parts]
        return first, parts, looked, count


def flag_of(numbers: Sequence[Tensor]) -> Tensor:
    """Return an fp32 number for the kernels: 0 where losses and norms are finite, else NaN."""
    return sum_of([number.reshape(()).mul(0.0).float() for number in numbers])


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of numbers that may be on different devices, on that of the first."""
    total, *others = parts
    for other in others:
        total = total + other.to(total.device)
    return total
