"""Lion + SaLSa: the sign of a mean of gradients (arXiv 2302.06675).

u = sign(beta1 m + (1 - beta1) g) + lambda w,  m <- beta2 m + (1 - beta2) g,  w <- w - lr eta u;
trials go along d = -sign(g), so that the slope is the sum of |g|.
"""

from typing import Any

import numpy as np

from .salsa import Array, ReferenceSaLSa


class ReferenceLion(ReferenceSaLSa):
    """As `ReferenceSaLSa`; v is empty, and eps plays no part."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.v = []

    def _descent(self, i: int, gi: Array, group: dict[str, Any]) -> Array:
        return np.sign(gi)

    def _update(self, i: int, gi: Array, group: dict[str, Any]) -> Array:
        beta1, beta2 = group["betas"]
        update = np.sign(beta1 * self.m[i] + (1 - beta1) * gi)
        self.m[i] = beta2 * self.m[i] + (1 - beta2) * gi
        self.t[i] += 1
        return update
