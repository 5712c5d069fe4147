"""Clipping gradients by their norm, without misleading the search.

The search tests the decrease of the loss against the slope ``<g, -d>``.  Clipping shrinks ``g``,
and Adam's ``d`` hardly at all, so that the slope seems smaller than it is and the search asks for
too little.  Whoever clips here keeps the factor, by which the slope is divided.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-6  # that torch adds to the norm


def clip(
    parameters: Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scale gradients in place so that their total norm is at most ``max_norm``.

    Returns:
        The norm before, and the factor (at most 1) that the gradients were multiplied by, both
        on their device: nothing waits for them.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)
    return norm, (max_norm / (norm + EPS)).clamp(max=1.0)


@dataclass
class Clipped:
    """What the gradients that are there were multiplied by; None where they were not clipped."""

    factor: Tensor | None = None
    by_the_step: bool = False  # to max_grad_norm, which a step that is tried again need not repeat

    def multiply(self, factor: Tensor) -> None:
        """Note that they were clipped, perhaps once more."""
        known = self.factor
        self.factor = factor if known is None else known * factor.to(known.device)
