"""What a backend is given: the rows of one bucket as one kernel goes over them, frozen.

``rows`` and ``chunks.raw`` are addresses and sizes as int64, for kernels in C++ or on a device: a
row is ``ROW_FIELDS`` words (rows.py), laid out as ``Row`` in ``csrc/rows.h``.  A row's gradient
address is 0 in a step in which it has no gradient, and no kernel touches it then.
"""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .beside import Beside
from .chunks import CHUNK_FIELDS, Chunks
from .directions import Direction, Scalars
from .saved import Saved
from .window import WindowStarts


class Work(NamedTuple):
    """Tensors, addresses and numbers for one kernel.  Lists have an entry for every row."""

    direction: Direction
    beside: Beside  # moments and masters, and how they are stored
    device: torch.device
    dtype: torch.dtype  # of weights, gradients and saved weights
    elements: int  # of all rows
    weights: list[Tensor]
    gradients: list[Tensor | None]
    moments: list[list[Tensor | None]]  # a list for each of the direction's moments
    stepped: list[Tensor]  # the weights that the kernel goes over and that have a gradient
    rows: array[int]
    rows_version: int  # counts the changes of `rows`
    chunks: Chunks  # of the rows that the kernel goes over
    chunks_of: object  # which rows these are
    all_chunks: Chunks  # of all rows
    chunks_version: int  # counts the changes of all of these
    scalars: list[Scalars]
    scalars_of: list[int]  # the index of each row's scalars
    raw_scalars: array[float]  # one after the other; fp32, each float64 number rounded once
    saved: Saved | None  # the weights before the search, or None: they lie in place
    ratios: Tensor | None  # a trust ratio for each row, on the device
    skip: Tensor | None  # one fp32 number on the device: not 0, and no step writes anything
    window: WindowStarts  # the weights as the window began, of rows that have a gradient
    kept: dict[str, Any]  # what the backend keeps from one kernel to the next

    def rows_with_gradient(self) -> list[int]:
        """Return the indices of the rows that the kernel goes over and that have a gradient."""
        selected = dict.fromkeys(self.chunks.raw[::CHUNK_FIELDS])
        return [row for row in sorted(selected) if self.gradients[row] is not None]
