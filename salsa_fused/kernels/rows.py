"""What stays the same of a weight as long as its bucket stands: its group, shape and strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .memory import NO_MEMORY, has_memory, is_dense

# what kernels are told of a row, in words of 64 bits: where each field stands
MOST_MOMENTS = 3  # of any direction
WEIGHT, GRADIENT, MOMENTS = 0, 1, 2
SAVED_AT = MOMENTS + MOST_MOMENTS
SCALARS_AT = SAVED_AT + 1
MASTER_AT = SCALARS_AT + 1
NUMBER_AT = MASTER_AT + 1  # of the parameter, among all of the optimizer
ROW_FIELDS = NUMBER_AT + 1


class Row(NamedTuple):
    """One weight of a bucket."""

    label: str  # what messages call it
    group: int  # the index of its parameter group
    shape: torch.Size
    size: int  # elements
    stride: tuple[int, ...]
    contiguous: bool
    dense: bool

    @classmethod
    def of(cls, weight: Tensor, group: int, label: str) -> Row:
        """Describe a weight.

        Raises:
            RuntimeError: its memory was freed.
        """
        if weight.data_ptr() == 0 and weight.device.type != "meta":
            raise RuntimeError(NO_MEMORY.format(label))
        how = weight.stride(), weight.is_contiguous(), is_dense(weight)
        return cls(label, group, weight.shape, weight.numel(), *how)

    def fits(self, weight: Tensor, dtype: torch.dtype, device: torch.device) -> bool:
        """Tell whether a weight can take these numbers: user code may have done anything to it."""
        return (
            weight.layout == torch.strided
            and weight.shape == self.shape
            and weight.dtype == dtype
            and weight.device == device
            and has_memory(weight)
        )


def lie_like(
    rows: Sequence[Row],
    tensors: Sequence[Tensor | None],
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Tell whether these lie in memory as the weights did when the rows were described.

    None lies anywhere.  Shapes are compared, too: torch looks only when a gradient is assigned.
    """
    return all(
        tensor is None
        or (
            tensor.layout == torch.strided
            and tensor.dtype == dtype
            and tensor.shape == row.shape
            and tensor.device == device
            and (tensor.is_contiguous() if row.contiguous else tensor.stride() == row.stride)
        )
        for tensor, row in zip(tensors, rows)
    )
