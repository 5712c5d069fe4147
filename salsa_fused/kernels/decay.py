"""Weight decay that would take more of a weight than there is: bounded, and told to the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..warning import warn
from .directions import Scalars

LARGE_DECAY = 0.5  # of a weight, in one step


def largest_ratio(group: Mapping[str, Any]) -> float:
    """Return what LAMB may multiply a step by, as far as that is known beforehand."""
    clip = group["trust_clip"]
    return 1.0 if clip is None else max(1.0, clip)


def with_bounded_decay(made: Scalars, part: float) -> Scalars:
    """Let a decay that would take ``part`` >= 1 of a weight take ``part / (1 + part)`` of it."""
    if part < 1.0:
        return made
    return made._replace(weight_decay=made.weight_decay / (1.0 + part))


def warn_of_decay(
    groups: Sequence[Mapping[str, Any]], index: int, step_size: float, part: float, ratio: float
) -> None:
    """Say that this group's decay takes a large part of its weights away in every step."""
    group = groups[index]
    where = f" in parameter group {index}" if len(groups) > 1 else ""
    product, value = "lr * step size * weight_decay", ""
    if ratio > 1.0:
        product, value = f"{product} * largest trust ratio", f", trust ratio {ratio:g}"
    warn(
        f"{product} is {part:.3g}{where} (lr={float(group['lr']):g}, step size {step_size:.3g}, "
        f"weight_decay={float(group['weight_decay']):g}{value}): a step takes that part of every "
        "weight away (from 1 on x / (1 + x) in place of x, so that none changes its sign). Trials "
        "are without decay, so lower weight_decay: AdamW's 0.01 at a rate of 0.001 takes 1e-5"
    )
