"""Rounding in Triton: to nearest, and at random as ``csrc/formats.h`` and rounding.py have it."""

from __future__ import annotations

import triton
import triton.language as tl

from .. import rounding

FIRST, SECOND = tl.constexpr(rounding.FIRST), tl.constexpr(rounding.SECOND)
SHIFTS = rounding.SHIFTS

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # on the CPU, without a compiler


@triton.jit
def store(pointer, x, mask, DTYPE: tl.constexpr):
    """Round to nearest, ties to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:  # the interpreter truncates
        bits = x.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    tl.store(pointer, x.to(DTYPE), mask=mask)


@triton.jit
def mixed(x):
    """32 bits that look random, for every 32 bits."""
    x = (x ^ (x >> 16)) * FIRST
    x = (x ^ (x >> 15)) * SECOND
    return x ^ (x >> 15)


@triton.jit
def key_of(number, t):
    """Of a parameter's step."""
    return mixed(mixed((number + 1).to(tl.uint32)) ^ t.to(tl.uint32, bitcast=True))


@triton.jit
def random_bits(key, index):
    """32 bits for the elements of these indices."""
    return mixed(index.to(tl.uint32) ^ key)


@triton.constexpr_function
def bits_of_moment(k: int) -> int:
    return SHIFTS[k]


@triton.jit
def store_at_random(pointer, x, mask, random, k: tl.constexpr):
    """Round to bf16, up as often as what falls away is large; ``k``: which moment it is."""
    added = (random >> bits_of_moment(k)) & 0xFFFF
    rounded = ((x.to(tl.uint32, bitcast=True) + added) >> 16 << 16).to(tl.float32, bitcast=True)
    tl.store(pointer, tl.where(x == x, rounded, x).to(tl.bfloat16), mask=mask)
