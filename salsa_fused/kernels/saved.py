"""The weights that a search moves, as they were before it: one after the other in one memory.

Weights with masters need none: a search leaves the masters alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from .rows import Row

ALIGNMENT = 16  # elements, so that every row of the saved weights starts a vector


class Saved:
    """Memory for the weights of some rows.  A backend sets ``filled`` once they are in it.

    ``numbers``: the rows that are saved, of all ``rows``.  ``masters``: of all rows, if there are
    any; then there is no ``memory``.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        numbers: list[int],
        dtype: torch.dtype,
        device: torch.device,
        masters: Sequence[Tensor | None] | None = None,
    ) -> None:
        self.numbers = numbers
        self.starts = array("q", bytes(8 * len(rows)))  # of all rows, in elements
        self.memory: Tensor | None = None
        self.filled = False
        self._rows, self._masters = rows, masters
        self._dtype, self._device = dtype, device
        if masters is None:
            size = 0
            for number in numbers:
                self.starts[number] = size
                size += -(-rows[number].size // ALIGNMENT) * ALIGNMENT
            self.memory = torch.empty(size, dtype=dtype, device=device)

    def view(self, number: int) -> Tensor:
        """Return a row's weights before the search: saved, or its master in fp32.

        They are shaped like the row, in its memory order where it is dense.
        """
        row, start = self._rows[number], self.starts[number]
        if self.memory is None:
            assert self._masters is not None
            master = self._masters[number]
            assert master is not None
            return master
        if row.dense:
            return self.memory.as_strided(row.shape, row.stride, start)
        return self.memory[start : start + row.size].view(row.shape)

    def put_back(self, weights: Sequence[Tensor]) -> list[str]:
        """Write the saved weights back into these; return the labels of those that failed.

        Only torch's errors are caught: another one is a signal's, and asks for another call.
        """
        lost = []
        for number in self.numbers:
            row, weight, reason = self._rows[number], weights[number], ""
            try:
                if row.fits(weight, self._dtype, self._device):
                    weight.copy_(self.view(number))
                    continue
            except RuntimeError as error:
                reason = f" [{type(error).__name__}: {error}]"
            lost.append(row.label + reason)
        self.filled = False
        return lost
