"""Asking for the memory that a look at tensors reads, all at once.

A plain step reads a few attributes of every tensor: address, shape, dtype.  After a forward and a
backward they are in no cache, and every tensor is a chain of misses: Python's object, torch's
tensor, its storage.  The processor waits for one chain at a time; asked beforehand, it follows
a dozen at once.  Only a hint: an address that is no longer a tensor's does no harm.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from torch import Tensor

from . import native

LINE = 64  # bytes
TENSOR_LINES = 4  # that torch's own object takes, about


def lines_of(tensors: Iterable[Tensor | None], others: Iterable[object]) -> array[int]:
    """Addresses of the cache lines that describe tensors, not of their elements, and of others."""
    lines = array("q", map(id, others))
    for tensor in tensors:
        if tensor is not None:
            described = tensor._cdata
            lines.extend((id(tensor), tensor.untyped_storage()._cdata))
            lines.extend(range(described, described + TENSOR_LINES * LINE, LINE))
    return lines


def prefetch(lines: array[int]) -> None:
    if native.module is not None:
        native.module.prefetch(lines.buffer_info()[0], len(lines))
