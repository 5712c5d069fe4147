"""The scalars that a kernel is given, made of a parameter group, a step count and a step size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..warning import warn
from .interface import AdamClass

SMALLEST_EPS = 2.0**-126  # of fp32's normal numbers: a ratio of zeros is then 0, on any device
LARGE_DECAY = 0.5  # of a weight, in one step

NO_CLASS = AdamClass(*[0.0] * len(AdamClass._fields))


def adam_class(
    index: int, group: Mapping[str, Any], t: int, step: float, slope_scale: float, trial: bool
) -> AdamClass:
    """For Adam and LAMB.

    Raises:
        ValueError: a beta is out of range.
    """
    beta1, beta2 = group["betas"]
    if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
        raise ValueError(_says_which(index, beta1, beta2))
    # to maximize is to change the gradient's sign: exact where it is done in the scalars
    sign = -1.0 if group["maximize"] else 1.0
    return AdamClass(  # by position, in every step: names take twice as long
        beta1,
        sign * (1.0 - beta1),
        beta2,
        1.0 - beta2,
        1.0 / (1.0 - beta1**t),
        1.0 / math.sqrt(1.0 - beta2**t),
        max(group["eps"], SMALLEST_EPS),
        group["weight_decay"],
        sign * step if trial else step,
        slope_scale,
    )


def sgd_class(
    index: int, group: Mapping[str, Any], t: int, step: float, slope_scale: float, trial: bool
) -> AdamClass:
    """For ``w - step (g + decay w)``: that of the trials, too, where the decay is 0."""
    sign = -1.0 if group["maximize"] else 1.0
    decay = 0.0 if trial else sign * group["weight_decay"]
    return NO_CLASS._replace(step=sign * step, weight_decay=decay, slope_scale=slope_scale)


CLASSES = {"adam": adam_class, "sgd": sgd_class, "lamb": adam_class}


def _says_which(index: int, *betas: float) -> str:
    which = next(k for k, beta in enumerate(betas) if not 0.0 <= beta < 1.0)
    return (
        f"betas[{which}] of parameter group {index} is {betas[which]!r} and must lie in [0, 1): a "
        "scheduler or other code has set it after the optimizer was made; set "
        f'optimizer.param_groups[{index}]["betas"] = (0.9, 0.999), or let it end below 1'
    )


# -- weight decay -----------------------------------------------------------------------------


def largest_ratio(group: Mapping[str, Any]) -> float:
    """What LAMB may multiply a step by, as far as that is known beforehand."""
    clip = group["trust_clip"]
    return 1.0 if clip is None else max(1.0, clip)


def with_bounded_decay(made: AdamClass, part: float) -> AdamClass:
    """The class of a final write whose decay would take ``part`` of every weight away.

    From 1 on it takes ``part / (1 + part)``, so that no weight changes its sign.
    """
    if part < 1.0:
        return made
    return made._replace(weight_decay=made.weight_decay / (1.0 + part))


def warn_of_decay(
    groups: Sequence[Mapping[str, Any]],
    index: int,
    step_size: float,
    part: float,
    ratio: float,
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
