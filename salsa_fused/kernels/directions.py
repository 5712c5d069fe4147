"""The update directions: what each keeps of a weight, what its trials go along, and its step.

One class is one direction.  Its arithmetic stands here in plain torch (backend ``reference``),
and once more in ``csrc/directions.h`` (C++ and CUDA) and ``backends/triton_directions.py``; every
kernel is written for any direction.  With the gradient ``g``, the weights ``w`` and the step size
``eta``:

============  =====================================  ============================================
direction     a trial subtracts ``eta`` times        the step subtracts ``eta`` times
============  =====================================  ============================================
``adam``      ``g / (sqrt(v_hat) + eps)``            ``m_hat / (sqrt(v_hat) + eps) + decay w``
``sgd``       ``g``                                  ``g + decay w``
``lamb``      ``r`` times Adam's                     ``r`` times Adam's
``lion``      ``sign(g)``                            ``sign(beta1 m + (1 - beta1) g) + decay w``
``ademamix``  Adam's                                 ``(m_hat + alpha slow) / (sqrt(v_hat) + eps)
                                                     + decay w``
============  =====================================  ============================================

A trial has no momentum: equation (3) of SaLSa.  Moments are those after this step's update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
from torch import Tensor

SMALLEST_EPS = 2.0**-126  # of fp32's normal numbers: a ratio of zeros is then 0, on any device

Moments = Sequence[Tensor]
Updated = tuple[Tensor, list[Tensor]]


class Scalars(NamedTuple):
    """The numbers that all elements of one (parameter group, step count ``t``) share.

    They are computed in float64; a backend rounds them once to the precision it computes in.  The
    fields and their order are those of ``Scalars`` in ``csrc/directions.h``.
    """

    beta1: float = 0.0
    one_minus_beta1: float = 0.0
    beta2: float = 0.0
    one_minus_beta2: float = 0.0
    inv_bias1: float = 0.0  # 1 / (1 - beta1^t)
    inv_root_bias2: float = 0.0  # 1 / sqrt(1 - beta2^t)
    eps: float = 0.0
    weight_decay: float = 0.0
    size: float = 0.0  # of the step that is tried or applied: step size times the group's factor
    slope_scale: float = 0.0  # the group's factor relative to the largest one
    slow_beta: float = 0.0  # these three are AdEMAMix's
    one_minus_slow_beta: float = 0.0
    alpha: float = 0.0
    t: float = 0.0  # where a moment is rounded at random; exact up to 2^24


class StepFacts(NamedTuple):
    """What the numbers of a trial, or of the final write, are computed from."""

    group_index: int
    group: Mapping[str, Any]
    t: int  # updates of the moments, this step's included
    size: float  # step size times the group's factor
    slope_scale: float  # the group's factor relative to the largest one
    trial: bool
    sign: float  # the gradient's: -1 to maximize, which is exact where the scalars do it


class Direction:
    """All facts of one update direction.

    ``moments`` are named as in the optimizer's state, those that trials read first, and are zeros
    before a weight's first step.  ``constants`` are the direction's own numbers in a parameter
    group, with their defaults.
    """

    name: ClassVar[str]
    moments: ClassVar[tuple[str, ...]] = ()
    n_tried: ClassVar[int] = 0  # how many of the moments trials read
    constants: ClassVar[Mapping[str, float]] = {}
    of_unit_size: ClassVar[bool] = True  # an element of it is about 1 in size, as Adam's is
    scaled_by_ratios: ClassVar[bool] = False  # by one trust ratio for each tensor
    trial_is_step: ClassVar[bool] = False  # with equal scalars; only where there are no moments
    arithmetic: ClassVar[str]  # the direction whose `tried` and `update` the kernels take

    def __init_subclass__(cls) -> None:
        if "arithmetic" not in vars(cls) and "name" in vars(cls):
            cls.arithmetic = cls.name

    def scalars(self, of: StepFacts) -> Scalars:
        """Compute the numbers for a trial or for the final write.

        Raises:
            ValueError: a beta is out of range.
        """
        raise NotImplementedError

    def tried(self, g: Tensor, moments: Moments, c: Scalars) -> Tensor:
        """Return ``-d``, what a trial subtracts a multiple of; shape and dtype of ``g``."""
        raise NotImplementedError

    def update(self, g: Tensor, moments: Moments, c: Scalars) -> Updated:
        """Return what the step subtracts a multiple of, before decay, and the moments after it."""
        raise NotImplementedError


class Adam(Direction):
    """Adam with decoupled weight decay, equations (2) and (3) of SaLSa."""

    name = "adam"
    moments: ClassVar[tuple[str, ...]] = ("exp_avg_sq", "exp_avg")
    n_tried = 1

    def scalars(self, of: StepFacts) -> Scalars:
        _, group, t, size, slope_scale, trial, sign = of
        beta1, beta2 = group["betas"]
        if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
            refuse_betas(of)
        return Scalars(  # by position, in every step: names take twice as long
            beta1,
            sign * (1.0 - beta1),
            beta2,
            1.0 - beta2,
            1.0 / (1.0 - beta1**t),
            1.0 / math.sqrt(1.0 - beta2**t),
            max(group["eps"], SMALLEST_EPS),
            group["weight_decay"],
            sign * size if trial else size,
            slope_scale,
        )

    def tried(self, g: Tensor, moments: Moments, c: Scalars) -> Tensor:
        return g.div(preconditioner(second_moment(moments[0], g, c), c))

    def update(self, g: Tensor, moments: Moments, c: Scalars) -> Updated:
        v, m = second_moment(moments[0], g, c), first_moment(moments[1], g, c)
        return m.mul(c.inv_bias1).div_(preconditioner(v, c)), [v, m]


class SGD(Direction):
    """The gradient itself, without momentum; it remembers nothing of a weight."""

    name = "sgd"
    of_unit_size = False
    trial_is_step = True

    def scalars(self, of: StepFacts) -> Scalars:
        decay = 0.0 if of.trial else of.sign * of.group["weight_decay"]
        return Scalars(weight_decay=decay, size=of.sign * of.size, slope_scale=of.slope_scale)

    def tried(self, g: Tensor, moments: Moments, c: Scalars) -> Tensor:
        return g

    def update(self, g: Tensor, moments: Moments, c: Scalars) -> Updated:
        return g, []


class LAMB(Adam):
    """Adam's direction, scaled for each tensor by a trust ratio (arXiv 2011.13584)."""

    name = "lamb"
    arithmetic = "adam"
    scaled_by_ratios = True


class Lion(Direction):
    """The sign of a mean of gradients (arXiv 2302.06675); trials go along the sign of ``g``."""

    name = "lion"
    moments = ("exp_avg",)

    def scalars(self, of: StepFacts) -> Scalars:
        beta1, beta2 = of.group["betas"]
        if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
            refuse_betas(of)
        return Scalars(
            beta1=beta1,
            one_minus_beta1=of.sign * (1.0 - beta1),
            beta2=beta2,
            one_minus_beta2=of.sign * (1.0 - beta2),
            weight_decay=of.group["weight_decay"],
            size=of.sign * of.size if of.trial else of.size,
            slope_scale=of.slope_scale,
        )

    def tried(self, g: Tensor, moments: Moments, c: Scalars) -> Tensor:
        return sign_of(g)

    def update(self, g: Tensor, moments: Moments, c: Scalars) -> Updated:
        (before,) = moments
        mean = sign_of(first_moment(before, g, c))
        m = before.mul(c.beta2).add_(g.mul(c.one_minus_beta2))
        return mean, [m]


class AdEMAMix(Adam):
    """Adam with a second, slow mean of gradients added (arXiv 2409.03137), without its schedules.

    The slow mean has no bias correction: it grows over the first ``1 / (1 - slow_beta)`` steps.
    """

    name = "ademamix"
    moments: ClassVar[tuple[str, ...]] = ("exp_avg_sq", "exp_avg", "exp_avg_slow")
    constants: ClassVar[Mapping[str, float]] = {"alpha": 5.0, "slow_beta": 0.9999}

    def scalars(self, of: StepFacts) -> Scalars:
        slow_beta = of.group["slow_beta"]
        return (
            super()
            .scalars(of)
            ._replace(
                slow_beta=slow_beta,
                one_minus_slow_beta=of.sign * (1.0 - slow_beta),
                alpha=of.group["alpha"],
            )
        )

    def update(self, g: Tensor, moments: Moments, c: Scalars) -> Updated:
        v, m = second_moment(moments[0], g, c), first_moment(moments[1], g, c)
        slow = moments[2].mul(c.slow_beta).add_(g.mul(c.one_minus_slow_beta))
        mean = m.mul(c.inv_bias1).add_(slow.mul(c.alpha))
        return mean.div_(preconditioner(v, c)), [v, m, slow]


DIRECTIONS: dict[str, Direction] = {
    direction.name: direction for direction in (Adam(), SGD(), LAMB(), Lion(), AdEMAMix())
}
"""By name, in the order of ``Direction`` in ``csrc/directions.h``."""

CODES = {name: code for code, name in enumerate(DIRECTIONS)}  # what C++ calls them


def direction_of(group: Mapping[str, Any]) -> Direction:
    """Return the direction of a parameter group."""
    return DIRECTIONS[group["direction"]]


def refuse_betas(of: StepFacts) -> NoReturn:
    """Raise ValueError for betas that are out of range: a scheduler may have set them."""
    betas, index = of.group["betas"], of.group_index
    which = next(k for k, beta in enumerate(betas) if not 0.0 <= beta < 1.0)
    raise ValueError(
        f"betas[{which}] of parameter group {index} is {betas[which]!r} and must lie in [0, 1): a "
        "scheduler or other code has set it after the optimizer was made; set "
        f'optimizer.param_groups[{index}]["betas"] = (0.9, 0.999), or let it end below 1'
    )


# -- the arithmetic, in the order of csrc/directions.h; addcmul and add(alpha=) round otherwise --


def first_moment(m: Tensor, g: Tensor, c: Scalars) -> Tensor:
    """Return ``m`` after this step."""
    return m.mul(c.beta1).add_(g.mul(c.one_minus_beta1))


def second_moment(v: Tensor, g: Tensor, c: Scalars) -> Tensor:
    """Return ``v`` after this step."""
    return v.mul(c.beta2).add_(g.mul(c.one_minus_beta2).mul_(g))


def preconditioner(v: Tensor, c: Scalars) -> Tensor:
    """Return ``sqrt(v_hat) + eps``."""
    return _root(v).mul_(c.inv_root_bias2).add_(c.eps)


def decayed(update: Tensor, w: Tensor, c: Scalars) -> Tensor:
    """Return the bracket of equation (2), which the step subtracts ``size`` times."""
    return update.add(w.mul(c.weight_decay))


def sign_of(x: Tensor) -> Tensor:
    """Return 1, -1, or ``x`` itself where it is 0 or not a number."""
    return torch.where(x > 0.0, 1.0, torch.where(x < 0.0, -1.0, x))


def _root(x: Tensor) -> Tensor:
    """Return the correctly rounded root: torch's is 1 ulp off for a fifth of fp32 values."""
    if x.dtype == torch.float64 or x.device.type == "mps":
        return x.sqrt()
    return x.double().sqrt_().float()
