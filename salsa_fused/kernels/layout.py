"""How a tensor lies in memory."""

from __future__ import annotations

from torch import Tensor


def _extents(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions that matter, innermost first."""
    return sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape) if size > 1)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory, each once, in any order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in _extents(tensor):
        if stride != expected:
            return False
        expected *= size
    return True


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements may share memory (an expanded tensor, a sliding window)."""
    if tensor.numel() == 0:
        return False
    reach = 0  # of the dimensions further in
    for stride, size in _extents(tensor):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def same_layout(tensor: Tensor, other: Tensor) -> bool:
    """Whether equal positions in memory hold equal indices."""
    return tensor.stride() == other.stride() or (tensor.is_contiguous() and other.is_contiguous())
