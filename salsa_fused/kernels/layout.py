"""How tensors lie in memory, and what lies beside a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

NO_MEMORY = (
    "{} has no memory of its own: its storage was freed (`resize_(0)`), or it is a tensor "
    "subclass that only describes others; give it its memory back before the step"
)


def is_lazy(tensor: Tensor) -> bool:
    """Whether it has no shape yet."""
    return isinstance(tensor, (UninitializedParameter, UninitializedBuffer))


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


def has_memory(tensor: Tensor) -> bool:
    """Whether its storage holds all its elements: it may have been freed, or cut short."""
    reach = tensor.storage_offset() + 1
    reach += sum(stride * (size - 1) for stride, size in _extents(tensor))
    held = tensor.untyped_storage().nbytes()
    return tensor.data_ptr() != 0 and reach * tensor.element_size() <= held


def same_layout(tensor: Tensor, other: Tensor) -> bool:
    """Whether equal positions in memory hold equal indices."""
    return tensor.stride() == other.stride() or (tensor.is_contiguous() and other.is_contiguous())


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Moments and arithmetic: float64 for float64 weights, fp32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # as `Dtype` in csrc/storage.h


def unfit_for_fast_kernels(weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
    """Why only the reference serves such a weight; None if a compiled kernel can."""
    if weight.dtype not in FAST_DTYPES or gradient_dtype != weight.dtype:
        served = ", ".join(map(str, FAST_DTYPES))
        return (
            f"it has no kernel for {weight.dtype} weights with {gradient_dtype} gradients, "
            f"only for equal dtypes among {served}"
        )
    if not is_dense(weight):
        return "it has no kernel for weights with gaps in memory"
    return None


def moment_like(weight: Tensor, value: Tensor | None = None) -> Tensor:
    """A moment that lies beside its weight: same device and strides, fp32 (or float64).

    ``value`` itself where it already does; zeros where it is None.
    """
    dtype = compute_dtype(weight.dtype)
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
    """The gradient laid out like its weight; a copy where it is not.

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


def parameter_label(group: Mapping[str, Any], index: int) -> str:
    """How messages call a parameter: by name where the user gave names."""
    parameter = group["params"][index]
    names = group.get("param_names")
    name = f"{names[index]!r}" if names else f"{index} of its group"
    try:
        return f"parameter {name} (shape {tuple(parameter.shape)}, {parameter.dtype})"
    except RuntimeError:  # one that has no shape: lazy, nested
        return f"parameter {name}"
