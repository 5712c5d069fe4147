"""Whether tensors still are what they were, asked once for all of them.

An attribute of a tensor takes 50 ns to read, three of 200 tensors as long as a kernel.  Torch's
compiler has the same question before it runs compiled code and answers it in C++; its guards are
used here where they are there.  They are not public: without them everything is read in Python.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

TensorGuards: Any = None
with suppress(ImportError, AttributeError):  # where torch has them
    TensorGuards = importlib.import_module("torch._C._dynamo.guards").TensorGuards

MOST_MISSES = 4  # in a row; then guarding costs more than it saves


class Guards:
    """Dtype, shape, strides, device and kind (sparse, negated) of tensors, as last remembered."""

    def __init__(self) -> None:
        self._guards: Any = None
        self._count = 0
        self._misses = 0

    def hold(self, tensors: Sequence[Tensor]) -> bool:
        """Whether all is as remembered; false also where it is not known."""
        known = self._guards is not None and len(tensors) == self._count
        if known and self._guards.check(*tensors):
            self._misses = 0
            return True
        return False

    def remember(self, tensors: Sequence[Tensor]) -> None:
        self._guards = None
        self._count = len(tensors)
        if TensorGuards is None or self._misses >= MOST_MISSES or not tensors:
            return
        self._misses += 1
        sizes = [list(tensor.shape) for tensor in tensors]
        strides = [list(tensor.stride()) for tensor in tensors]
        try:
            guards = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        except Exception:  # of another torch, that wants to be asked otherwise
            self._misses = MOST_MISSES
        else:
            self._guards = guards
