"""Where a window of steps began: the weights as they were some steps ago.

They stand in the optimizer's state, a tensor beside each weight.  No kernel but ``alignment`` reads
them, and nobody looks for them but a step that asks: to all others they cost memory alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .layout import has_memory, is_dense, same_layout

WINDOW_START = "window_start"  # in an entry of the state


@dataclass(slots=True)
class NewWindow:
    """What a new window enters, made ready so that nothing of it fails when the step is taken."""

    entered: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # weights, and copies
    kept: list[Tensor] = field(default_factory=list)  # that stand in the state already
    saved: list[Tensor] = field(default_factory=list)  # what these are to hold


def start_in(entry: Mapping[str, Any] | None) -> Tensor | None:
    """What an entry of the state holds of a window, if anything."""
    return None if entry is None else entry.get(WINDOW_START)


def start_like(weight: Tensor, start: Tensor, label: str, alignment: int) -> Tensor:
    """The start laid out like its weight, and beginning where vectors do; a copy where it is not.

    ``alignment``: of these vectors, in bytes; 1 where there are none.

    Raises:
        RuntimeError: the weight has another shape now.
    """
    if start.shape != weight.shape:
        raise RuntimeError(
            f"{label} has shape {tuple(weight.shape)} now, and its `{WINDOW_START}` has "
            f"{tuple(start.shape)}: delete its entry, `del optimizer.state[parameter]`, after "
            "replacing a weight by one of another shape"
        )
    if lies_like(weight, start) and start.data_ptr() % alignment == 0:
        return start
    return empty_like(weight).copy_(start)


def lies_like(weight: Tensor, start: Tensor) -> bool:
    """Whether it can be read, and written, as its weight is."""
    return (
        start.layout == torch.strided
        and start.shape == weight.shape
        and start.dtype == weight.dtype
        and start.device == weight.device
        and (same_layout(start, weight) or not is_dense(weight))
    )


def can_be_kept(weight: Tensor, start: Tensor) -> bool:
    """Whether it has room for the weight as it is now, in place."""
    return lies_like(weight, start) and has_memory(start)


def empty_like(weight: Tensor) -> Tensor:
    """Memory for a start."""
    return torch.empty_like(weight, requires_grad=False)
