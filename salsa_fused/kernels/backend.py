"""The kernels, declared once; each backend is one file in ``backends/``.

==============  =====================  ==========================================  ==============
kernel          reads                  writes                                      bytes (Adam)
==============  =====================  ==========================================  ==============
`first_trial`   w, g, v                saved (the weights), w (first trial point)  20 a parameter
`next_trial`    saved, g, v            w (next trial point)                        16
`step`          saved or w, g, m, v    m, v, w                                     28
`trust_ratios`  w, g, m, v             one number for each row                     16
`alignment`     w, g, window_start     one number                                  12
==============  =====================  ==========================================  ==============

Bytes are for fp32.  A direction with fewer moments moves 4 bytes less for each in a trial that
would read it, and 8 in `step`.  LAMB's ratios are made once in a step, before anything moves, and
scale the rows of all other kernels.  `alignment` runs on those steps only that ask how far the
weights have come since a window of steps began.

Weights with masters (storage.py): every kernel reads the masters for `saved` and for the weights
before the step, `first_trial` saves nothing, `step` writes the masters, too, and what goes into `w`
is rounded.  Whatever the storage, the arithmetic is fp32.

The moments are deferred: a trial computes ``v`` after this step's update on the fly, and only
``step`` writes moments.  So ``w <- saved`` undoes a search completely.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .memory import is_dense
from .work import Work

FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # as `Dtype` in csrc/storage.h


class Backend(Protocol):
    """What a backend implements.  A row with a gradient has all moments of its direction."""

    name: str  # that users force it by; two backends may share one, on different devices
    title: str  # in the report of `python -m salsa_fused`
    devices: tuple[str, ...]  # that it is chosen for; none: for every device, if no other serves
    kernels: str  # what messages call its kernels
    instead: str  # what is said where it serves in place of a faster one
    chunk_size: int  # elements of a piece of work, at most
    vector_bytes: int  # what it reads at once where a row's tensors are aligned to it, or 0

    def missing(self, device: torch.device) -> str | None:
        """Return why the backend cannot run on a device of its kind, or None if it can."""

    def describe(self) -> str:
        """Return what there is of it, or what is missing, in one line."""

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        """Return why it cannot serve such a weight, or None if it can."""

    def first_trial(self, work: Work) -> Tensor:
        """Do ``saved <- w``, ``w <- w - size d``; return the slope ``-<g, d>``.

        It sets ``work.saved.filled`` once ``saved`` holds the weights, and not before.
        The slope is a float64 scalar on the device, scaled by each row's ``slope_scale`` and added
        up in an order that does not change from run to run.
        """

    def next_trial(self, work: Work) -> None:
        """Do ``w <- saved - size d``."""

    def step(self, work: Work) -> Callable[[], None]:
        """Prepare the step, from ``saved`` or, where that is None, in place.

        What can fail (memory, compilation) is done here.  Of several buckets none is written
        before all are ready.  Nothing is written where ``work.skip`` is a tensor that does not
        hold 0 (what is not a number included): it is on a device, and the host does not wait.

        Returns:
            A function that writes weights and moments.
        """

    def trust_ratios(self, work: Work, clip: float) -> Tensor:
        """Return LAMB's ``r = min(||w|| / ||u||, clip)`` of every row, on the device.

        ``u`` is what the step subtracts a multiple of; ``r`` is 1 where either norm is 0.  It has
        the precision of the arithmetic; the sums are float64, in an order that does not change
        from run to run.  Nothing waits for it.  ``work.ratios`` count for nothing here.
        """

    def alignment(self, work: Work) -> Tensor:
        """Return ``<g, window_start - w>`` of all rows that have both.

        It is a float64 scalar on the device, added up as the slope is.  Neither the groups'
        factors nor ``maximize`` count: the gradients are those that lie there.
        """


def unfit_for_fast_kernels(weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
    """Return why only the reference serves such a weight, or None if a compiled kernel can."""
    if weight.dtype not in FAST_DTYPES or gradient_dtype != weight.dtype:
        served = ", ".join(map(str, FAST_DTYPES))
        return (
            f"it has no kernel for {weight.dtype} weights with {gradient_dtype} gradients, "
            f"only for equal dtypes among {served}"
        )
    if not is_dense(weight):
        return "it has no kernel for weights with gaps in memory"
    return None
