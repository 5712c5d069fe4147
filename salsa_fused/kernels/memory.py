"""How tensors lie in memory, and the tensors that lie beside a weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

NO_MEMORY = (
    "{} has no memory of its own: its storage was freed (`resize_(0)`), or it is a tensor "
    "subclass that only describes others; give it its memory back before the step"
)


def is_lazy(tensor: Tensor) -> bool:
    """Tell whether a tensor has no shape yet."""
    return isinstance(tensor, (UninitializedParameter, UninitializedBuffer))


def _extents(tensor: Tensor) -> list[tuple[int, int]]:
    """Return (stride, size) of the dimensions that matter, innermost first."""
    return sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape) if size > 1)


def is_dense(tensor: Tensor) -> bool:
    """Tell whether the elements fill one block of memory, each once, in any order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in _extents(tensor):
        if stride != expected:
            return False
        expected *= size
    return True


def overlaps_itself(tensor: Tensor) -> bool:
    """Tell whether two elements may share memory (an expanded tensor, a sliding window)."""
    if tensor.numel() == 0:
        return False
    reach = 0  # of the dimensions further in
    for stride, size in _extents(tensor):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def has_memory(tensor: Tensor) -> bool:
    """Tell whether the storage holds all elements: it may have been freed, or cut short."""
    reach = tensor.storage_offset() + 1
    reach += sum(stride * (size - 1) for stride, size in _extents(tensor))
    held = tensor.untyped_storage().nbytes()
    return tensor.data_ptr() != 0 and reach * tensor.element_size() <= held


def same_layout(tensor: Tensor, other: Tensor) -> bool:
    """Tell whether equal positions in memory hold equal indices."""
    return tensor.stride() == other.stride() or (tensor.is_contiguous() and other.is_contiguous())


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of moments and arithmetic: float64 for float64 weights, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def moment_like(
    weight: Tensor, value: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a moment that lies like its weight: same device and strides, fp32 (or float64).

    It is ``value`` itself where that lies so already, a copy of it where not, and zeros for None.
    ``dtype``: another one.

    Raises:
        RuntimeError: ``value`` has another shape than the weight.
    """
    dtype = dtype or compute_dtype(weight.dtype)
    if value is not None and value.shape != weight.shape:
        raise RuntimeError(
            f"a weight has shape {tuple(weight.shape)} now, and its moments have "
            f"{tuple(value.shape)}: delete its entry, `del optimizer.state[parameter]`, after "
            "replacing a weight by one of another shape"
        )
    if value is None:
        return torch.zeros_like(weight, dtype=dtype, requires_grad=False)
    if (
        value.dtype == dtype
        and value.device == weight.device
        and (same_layout(value, weight) or not is_dense(weight))
    ):
        return value
    return torch.empty_like(weight, dtype=dtype, requires_grad=False).copy_(value)


def readable_gradient(gradient: Tensor, weight: Tensor, label: str) -> Tensor:
    """Return the gradient laid out like its weight: itself, or a copy where it is not.

    Raises:
        RuntimeError: no kernel can read it (sparse, complex, of another shape or device).
    """
    if gradient.layout != torch.strided:
        raise RuntimeError(
            f"the gradient of {label} is sparse ({gradient.layout}): FusedSaLSa needs dense "
            "gradients; build the embedding with sparse=False"
        )
    if gradient.dtype.is_complex:
        raise RuntimeError(
            f"the gradient of {label} is complex: FusedSaLSa trains real weights; hold real and "
            "imaginary part in two parameters"
        )
    if gradient.device != weight.device or gradient.shape != weight.shape:
        raise RuntimeError(
            f"the gradient of {label} has shape {tuple(gradient.shape)} on {gradient.device}, and "
            f"the weight has {tuple(weight.shape)} on {weight.device}: call zero_grad() after the "
            "weight was moved or replaced"
        )
    gradient = gradient.resolve_neg()  # kernels read memory, where the sign is not yet turned
    if same_layout(gradient, weight) or not is_dense(weight):
        return gradient
    return torch.empty_like(weight, dtype=gradient.dtype, requires_grad=False).copy_(gradient)
