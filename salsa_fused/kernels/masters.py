"""Masters follow weights that somebody else has written: a model that was loaded, clamped, swapped.

Between steps a weight is its master, rounded to nearest.  Where it is not, the weight counts.  To
look at every element costs as much as a fifth of a step, so it is done only where autograd counts
a write that was not the optimizer's, or a weight lies elsewhere.  (``weight.data.mul_()`` is
neither: the next step undoes it.)
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from .._torch import versions_of


class Followers:
    """What has been seen of the weights of one bucket that have masters."""

    def __init__(self) -> None:
        self._seen: tuple[list[int], array[int]] | None = None

    def note(self, weights: Sequence[Tensor], addresses: array[int]) -> None:
        """Note that every weight is its master, rounded."""
        self._seen = versions_of(weights), addresses[:]

    def follow(
        self,
        weights: Sequence[Tensor],
        masters: Sequence[Tensor | None],
        addresses: array[int],
    ) -> None:
        """Let those elements of masters be the weights' that do not round to them."""
        if self._seen == (versions_of(weights), addresses):
            return
        for weight, master in zip(weights, masters):
            if master is not None:
                same = master.to(weight.dtype) == weight
                master.copy_(torch.where(same, master, weight.to(master.dtype)))
        self.note(weights, addresses)
