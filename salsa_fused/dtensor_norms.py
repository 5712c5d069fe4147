"""Clip gradients that are DTensors of several meshes, beside plain ones: torch mixes none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ._torch import is_dtensor, whole_of


def clip_grad_norm_of_dtensors(
    parameters: Sequence[Tensor], max_norm: float, norm_type: float, error_if_nonfinite: bool
) -> Tensor:
    """Do what ``torch.nn.utils.clip_grad_norm_`` does; return the norm of all, a plain tensor."""
    kinds: defaultdict[Any, list[Tensor]] = defaultdict(list)  # that torch takes in one call
    for parameter in parameters:
        gradient: Any = parameter.grad
        if gradient is not None:
            of_dtensor = is_dtensor(gradient)
            layout: Any = (gradient.device_mesh, gradient.placements) if of_dtensor else None
            kinds[layout].append(parameter)
    norms = [
        whole_of(get_total_norm([p.grad for p in alike if p.grad is not None], norm_type))
        for alike in kinds.values()
    ]
    norm = get_total_norm([one.to(norms[0].device) for one in norms], norm_type, error_if_nonfinite)
    for alike in kinds.values():
        clip_grads_with_norm_(alike, max_norm, norm)
    return norm if norms else torch.zeros(())
