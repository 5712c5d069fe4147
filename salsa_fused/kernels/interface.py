"""The kernels, declared once; each backend is one file beside this one.

==============  ====================  ==========================================  ==============
kernel          reads                 writes                                      bytes (fp32)
==============  ====================  ==========================================  ==============
`first_trial`   w, g, v               saved (the weights), w (first trial point)  20 a parameter
`next_trial`    saved, g, v           w (next trial point)                        16
`adam_step`     saved or w, g, m, v   m, v, w                                     28
`sgd_step`      saved or w, g         w                                           12
`trust_ratios`  w, g, m, v            one number for each row                     16
`alignment`     w, g, window_start    one number                                  12
==============  ====================  ==========================================  ==============

LAMB takes Adam's kernels; its ratios, made once in a step before anything moves, scale them row by
row.  SGD's trials read no ``v`` (there is none) and move 4 bytes less.  `alignment` runs on those
steps only that ask how far the weights have come since a window of steps began.

The moments are deferred: a trial computes ``v`` after this step's update on the fly, and only
``adam_step`` writes ``m`` and ``v``.  So ``w <- saved`` undoes a search completely.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .launch import Launch


Direction = Literal["adam", "sgd", "lamb"]  # what is tried, and with momentum applied
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)  # as `Direction` in csrc/directions.h


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


class Backend(Protocol):
    """What a backend implements.  A row with a gradient has moments (zeros at first), but for SGD.

    The direction of the trials is ``launch.direction``.
    """

    name: str
    chunk_size: int  # elements of a piece of work, at most
    vector_bytes: int  # what it reads at once where a row's tensors are aligned to it, or 0

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

    def adam_step(self, launch: Launch) -> Callable[[], None]:
        """``m, v, w <-`` after the step, from ``saved`` or, where that is None, in place.

        What can fail (memory, compilation) is done here; what is returned writes.  Of several
        launches none is written before all are ready.

        Nothing is written where ``launch.skip`` is a tensor that does not hold 0 (what is not a
        number included): it is on a device, which the host does not wait for.
        """

    def sgd_step(self, launch: Launch) -> Callable[[], None]:
        """``w <-`` after the step of SGD; the rest as with :meth:`adam_step`."""

    def trust_ratios(self, launch: Launch, clip: float) -> Tensor:
        """LAMB's ``r = min(||w|| / ||u||, clip)`` of every row, on the launch's device.

        ``u`` is what the final write subtracts a multiple of; 1 where either norm is 0.  In the
        precision of the arithmetic, of sums in float64 in an order that does not change from run
        to run.  Nothing waits for it; ``launch.ratios`` are those that the other kernels use.
        """

    def alignment(self, launch: Launch) -> Tensor:
        """``<g, window_start - w>`` of all rows that have both, whatever unit is selected.

        A float64 scalar on the launch's device, added up as the slope is.  Neither the groups'
        factors nor ``maximize`` count: the gradients are those that lie there.
        """
