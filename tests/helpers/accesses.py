"""The 128-bit accesses that a kernel needs: each tensor that it reads or writes, once."""

from __future__ import annotations

from salsa_fused.kernels import DIRECTIONS

MOMENTS = {  # all, and those that are tried, of every direction with arithmetic of its own
    name: (len(direction.moments), direction.n_tried)
    for name, direction in DIRECTIONS.items()
    if direction.arithmetic == name
}


def accesses(kernel: str, direction: str, dtype: str) -> tuple[int, int]:
    """Loads and stores of a vector of weights; one of 16-bit weights needs two of each moment.

    "mixed": each tensor in fp32 has one.
    """
    moments, tried = (2 * n if dtype in ("bf16", "fp16") else n for n in MOMENTS[direction])
    return {
        "first_trial": (2 + tried, 2),
        "next_trial": (2 + tried, 1),
        "step": (2 + moments, 1 + moments),
        "norms": (2 + moments, 0),
        "trust_ratios": (0, 0),
        "alignment": (3, 0),
    }[kernel]
