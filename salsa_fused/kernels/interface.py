"""The three kernels, declared once; each backend is one file beside this one.

==============  ====================  ==========================================  ==============
kernel          reads                 writes                                      bytes (fp32)
==============  ====================  ==========================================  ==============
`first_trial`   w, g, v               saved (the weights), w (first trial point)  20 a parameter
`next_trial`    saved, g, v           w (next trial point)                        16
`adam_step`     saved or w, g, m, v   m, v, w                                     28
==============  ====================  ==========================================  ==============

The moments are deferred: a trial computes ``v`` after this step's update on the fly, and only
``adam_step`` writes ``m`` and ``v``.  So ``w <- saved`` undoes a search completely.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class AdamClass(NamedTuple):
    """The scalars that all elements of one (parameter group, step count ``t``) share.

    Computed in float64; a backend rounds them once to the precision it computes in.  The fields
    and their order are those of ``AdamClass`` in ``csrc/adam.h``.
    """

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    inv_bias1: float  # 1 / (1 - beta1^t)
    inv_root_bias2: float  # 1 / sqrt(1 - beta2^t)
    eps: float
    weight_decay: float
    step: float  # what is tried, or applied: the step size times the group's factor
    slope_scale: float  # the group's factor relative to the largest one


@dataclass(slots=True, eq=False)
class Row:
    """One weight tensor and what belongs to it."""

    weight: Tensor
    group: int  # index of its parameter group
    saved_at: int  # its place in the saved weights, in elements
    gradient: Tensor | None = None  # held during a step only
    exp_avg: Tensor | None = None  # None until there is a gradient
    exp_avg_sq: Tensor | None = None
    t: int = 0  # updates of its moments so far
    klass: int = 0  # index into Launch.classes


ROW_FIELDS = 6  # int64 each: `Row` in csrc/adam.h
CHUNK_FIELDS = 3


@dataclass(slots=True, eq=False)
class Launch:
    """The rows that one kernel launch serves: one device, one pair of dtypes, one backend.

    ``raw_rows`` and ``raw_chunks`` are the same table as addresses and sizes, for backends that
    read it in C++ or on a device: int64, laid out as ``Row`` and ``Chunk`` in ``csrc/adam.h``.
    A row's gradient address is 0 in a step in which it has none.
    """

    backend: Backend
    device: torch.device
    dtype: torch.dtype  # of the weights
    rows: list[Row] = field(default_factory=list)
    class_of: dict[tuple[int, int], int] = field(default_factory=dict)  # (group, t) -> class
    classes: list[AdamClass] = field(default_factory=list)
    raw_rows: array[int] = field(default_factory=lambda: array("q"))
    raw_chunks: array[int] = field(default_factory=lambda: array("q"))
    saved_size: int = 0  # elements
    saved: Tensor | None = None  # the weights before the search, flat; only while one runs
    moved: bool = False  # `saved` holds the weights, which stand at a trial point


class Backend(Protocol):
    """What a backend implements.  A row with a gradient has moments (zeros at first)."""

    name: str

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        """Why this backend cannot serve such a weight; None if it can."""

    def first_trial(self, launch: Launch) -> Tensor:
        """``saved <- w``, ``w <- w + step d``; returns the slope ``-<g, d>``.

        Sets ``launch.moved`` once ``saved`` holds the weights, and not before.
        The slope is a float64 scalar on the launch's device, scaled by each class's
        ``slope_scale`` and added up in an order that does not change from run to run.
        """

    def next_trial(self, launch: Launch) -> None:
        """``w <- saved + step d``."""

    def adam_step(self, launch: Launch) -> None:
        """``m, v, w <-`` after the step, from ``saved`` or, where that is None, in place."""
