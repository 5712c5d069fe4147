"""The constants of the other systems (algorithm: seeds 001 and 002), beside DEFAULTS and PAPER."""

from collections.abc import Sequence
from typing import Any

from .salsa import PAPER

# The paper's constants; what makes it SGD is the direction.
SGD_SALSA: dict[str, Any] = {**PAPER}
# Armijo's criterion on the mini-batch alone, on every step; Adam's direction or SGD's.
SLS: dict[str, Any] = {**PAPER, "beta3": 0.0, "c": 0.1, "search_period": (1, 1)}

# Step-size factors of embeddings; layers {0,1}, {2}, {3,4}, {5}, {6,7}, {8}, {9,10}, {11}; head.
PUBLISHED_FACTORS = (1.0, 1.0, 0.3, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0)


def distributed(
    groups: Sequence[dict[str, Any]], factors: Sequence[float] = PUBLISHED_FACTORS
) -> list[dict[str, Any]]:
    """The groups with one factor each as `lr`, the largest 1: what is applied is what was tried."""
    assert len(groups) == len(factors)
    return [{**group, "lr": f / max(factors)} for group, f in zip(groups, factors, strict=True)]
