"""Rounding at random to bf16: up as often as what falls away is large, so that the mean is right.

To nearest, ``exp_avg_sq`` would never decay: 0.999 of a bf16 number is nearer to it than to the one
below.  The random bits are a hash of the step, the parameter's number and the element's index: what
a run rounds does not depend on the backend, on threads, or on any generator, and a run that is
resumed rounds as the one that went on.  All is integer arithmetic modulo 2^32, as in
``csrc/formats.h``.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import torch
from torch import Tensor

from .memory import is_dense

Bits = TypeVar("Bits", int, Tensor)  # 32 of them; in int64, which has room for the products

LOW = 0xFFFFFFFF
# a permutation of 32 bits whose outputs change in half of their bits with any bit of the input
# (found by search, github.com/skeeto/hash-prospector); both are below 2^31, so no product overflows
FIRST, SECOND = 0x21F0AAAD, 0x735A2D97
SHIFTS = (0, 16, 8)  # where the 16 bits of each of a row's moments begin


def mixed(x: Bits) -> Bits:
    """Return other 32 bits for every 32 bits, which look random."""
    x = ((x ^ (x >> 16)) * FIRST) & LOW
    x = ((x ^ (x >> 15)) * SECOND) & LOW
    return x ^ (x >> 15)


def key_of(number: int, t: float) -> int:
    """Return the key of a parameter's step ``t``; ``number``: its place among all parameters.

    Of ``t`` the bits in fp32 count, among whose other numbers kernels have it.
    """
    return mixed(mixed((number + 1) & LOW) ^ int.from_bytes(struct.pack("<f", t), "little"))


def random_bits(like: Tensor, key: int) -> Tensor:
    """Return 32 bits for every element, int64, by its place in memory."""
    index = torch.arange(like.numel(), device=like.device) & LOW
    dense = is_dense(like)
    index = index.as_strided(like.shape, like.stride()) if dense else index.view(like.shape)
    return mixed(index ^ key)


def rounded_at_random(x: Tensor, random: Tensor, moment: int) -> Tensor:
    """Return fp32 numbers in bf16; ``moment``: which of a row's moments they are.

    One with bits that bf16 has is kept, and so is what is not a finite number.
    """
    added = (random >> SHIFTS[moment]) & 0xFFFF
    # a sum wraps only where x is not a number
    rounded = ((x.view(torch.int32) + added) >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(x.isnan(), x.to(torch.bfloat16), rounded)
