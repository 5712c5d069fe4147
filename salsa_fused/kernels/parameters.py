"""What a parameter has to be so that a kernel can train it; a frozen one may be anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import local_of
from .memory import NO_MEMORY, is_dense, is_lazy, overlaps_itself


def parameter_label(group: Mapping[str, Any], index: int) -> str:
    """Return what messages call a parameter: its name where the user gave names."""
    parameter = group["params"][index]
    names = group.get("param_names")
    name = f"{names[index]!r}" if names else f"{index} of its group"
    try:
        return f"parameter {name} (shape {tuple(parameter.shape)}, {parameter.dtype})"
    except RuntimeError:  # one that has no shape: lazy, nested
        return f"parameter {name}"


def takes_part(parameter: Tensor) -> bool:
    """Tell whether a step may move it: all but what is frozen and has no gradient."""
    return parameter.requires_grad or parameter.grad is not None


def check_parameter(parameter: Tensor, label: str) -> None:
    """Raise TypeError or ValueError for a tensor that no kernel can train.

    Of a DTensor the kernels train the part that this rank has.
    """
    parameter = local_of(parameter)
    if is_lazy(parameter):
        raise TypeError(
            f"{label} is lazy, it has no shape yet: run one forward pass of the model before you "
            "build the optimizer"
        )
    if type(parameter) is not Tensor and not _is_plain_parameter(parameter):
        kind = f"{type(parameter).__module__}.{type(parameter).__qualname__}"
        raise TypeError(
            f"{label} is a {kind}; FusedSaLSa writes weights through their addresses and trains "
            "plain tensors and DTensors only (no other tensor subclass)"
        )
    if parameter.layout != torch.strided:
        raise TypeError(f"{label} is sparse ({parameter.layout}): make it dense")
    if not parameter.is_floating_point():
        raise TypeError(
            f"{label} is not of a real floating dtype: leave it out, or train a float copy of it"
        )
    if parameter.is_inference():
        raise ValueError(
            f"{label} was made under torch.inference_mode and can have no gradient: make the model "
            "outside of it"
        )
    if parameter.is_neg():
        raise ValueError(f"{label} is a negated view: use parameter.detach().resolve_neg()")
    if parameter.device.type == "meta":
        raise ValueError(
            f"{label} is on the meta device, it holds no numbers: materialise the model first "
            "(module.to_empty(device=...), then initialise it)"
        )
    if overlaps_itself(parameter):
        raise ValueError(
            f"{label} overlaps itself in memory (strides {parameter.stride()}): use "
            "parameter.detach().clone()"
        )


def check_no_shared_memory(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError where two parameters share memory: each step would move it twice."""
    spans = []
    for group in groups:
        for index, parameter in enumerate(group["params"]):
            own = local_of(parameter)
            if takes_part(parameter) and own.numel() > 0 and is_dense(own):
                start = own.data_ptr()
                end = start + own.numel() * own.element_size()
                if start:  # where there is no memory nothing is shared
                    spans.append((str(own.device), start, end, parameter_label(group, index)))
    spans.sort()
    for (device, _, end, label), (next_device, start, _, next_label) in pairwise(spans):
        if device == next_device and start < end:
            raise ValueError(
                f"{label} and {next_label} share memory: tie weights by using one parameter in "
                "both places (a.weight = b.weight, not a.weight.data = b.weight.data)"
            )


def check_gradients_have_memory(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise RuntimeError where a gradient's memory was given back: torch would read it."""
    for group in groups:
        for index, parameter in enumerate(group["params"]):
            gradient = local_of(parameter.grad)
            if gradient is None or gradient.layout != torch.strided or gradient.data_ptr():
                continue
            if gradient.numel() > 0:
                label = f"the gradient of {parameter_label(group, index)}"
                raise RuntimeError(NO_MEMORY.format(label))


def _is_plain_parameter(parameter: Tensor) -> bool:
    kind = type(parameter)
    return kind is nn.Parameter or (
        isinstance(parameter, nn.Parameter)
        and kind.__torch_function__ is nn.Parameter.__torch_function__
        and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
    )
