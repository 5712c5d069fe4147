"""The directions in Triton: the arithmetic of ``csrc/directions.h``, in the same order.

To add one, write its branch of :func:`tried` and :func:`update`; the last branch is Adam's.  ``g``
are gradients and ``w`` weights in fp32, ``m`` the moments, ``c`` the scalars.  Without fma, and
with correctly rounded division and root, the bits are those of every other backend.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..directions import DIRECTIONS, Scalars


def _place(name: str) -> tl.constexpr:
    return tl.constexpr(Scalars._fields.index(name))


BETA1, ONE_MINUS_BETA1 = _place("beta1"), _place("one_minus_beta1")
BETA2, ONE_MINUS_BETA2 = _place("beta2"), _place("one_minus_beta2")
INV_BIAS1, INV_ROOT_BIAS2 = _place("inv_bias1"), _place("inv_root_bias2")
EPS, WEIGHT_DECAY = _place("eps"), _place("weight_decay")
SIZE, SLOPE_SCALE = _place("size"), _place("slope_scale")
SLOW_BETA, ONE_MINUS_SLOW_BETA = _place("slow_beta"), _place("one_minus_slow_beta")
ALPHA = _place("alpha")
STEP = _place("t")
SCALAR_FIELDS = tl.constexpr(len(Scalars._fields))


# plain numbers: Triton compares globals with those of the time when it compiled
N_KEPT = {name: len(direction.moments) for name, direction in DIRECTIONS.items()}
N_TRIED = {name: direction.n_tried for name, direction in DIRECTIONS.items()}


@triton.constexpr_function
def n_kept(direction: str) -> int:
    """How many moments it keeps."""
    return N_KEPT[direction]


@triton.constexpr_function
def n_tried(direction: str) -> int:
    """How many of them its trials read: the first ones."""
    return N_TRIED[direction]


@triton.jit
def tried(g, m, c, DIRECTION: tl.constexpr):
    """-d of the trials, without momentum."""
    if DIRECTION == "sgd":
        return g
    elif DIRECTION == "lion":
        return sign(g)
    else:
        return tl.div_rn(g, preconditioner(second_moment(m[0], g, c), c))


@triton.jit
def update(g, m, c, DIRECTION: tl.constexpr):
    """What the step subtracts before decay, and the moments after it."""
    if DIRECTION == "sgd":
        return g, ()
    elif DIRECTION == "lion":
        x = first_moment(m[0], g, c)
        mean = c[BETA2] * m[0] + c[ONE_MINUS_BETA2] * g
        return sign(x), (mean,)
    elif DIRECTION == "ademamix":
        square, mean = second_moment(m[0], g, c), first_moment(m[1], g, c)
        slow = c[SLOW_BETA] * m[2] + c[ONE_MINUS_SLOW_BETA] * g
        u = tl.div_rn(mean * c[INV_BIAS1] + c[ALPHA] * slow, preconditioner(square, c))
        return u, (square, mean, slow)
    else:
        square, mean = second_moment(m[0], g, c), first_moment(m[1], g, c)
        u = tl.div_rn(mean * c[INV_BIAS1], preconditioner(square, c))
        return u, (square, mean)


@triton.jit
def decayed(u, w, c):
    """What the step subtracts."""
    return u + c[WEIGHT_DECAY] * w


@triton.jit
def first_moment(m, g, c):
    return c[BETA1] * m + c[ONE_MINUS_BETA1] * g


@triton.jit
def second_moment(v, g, c):
    return c[BETA2] * v + (c[ONE_MINUS_BETA2] * g) * g


@triton.jit
def preconditioner(v, c):
    return tl.sqrt_rn(v) * c[INV_ROOT_BIAS2] + c[EPS]


@triton.jit
def sign(x):
    """0, and what is not a number, stay as they are."""
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))
