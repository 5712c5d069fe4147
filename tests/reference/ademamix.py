"""AdEMAMix + SaLSa: a second, slow mean of gradients beside Adam's (arXiv 2409.03137).

n <- beta_slow n + (1 - beta_slow) g,  u = (m_hat + alpha n) / (sqrt(v_hat) + eps) + lambda w.
n has no bias correction; alpha and beta_slow are constant.  Trials go along Adam's direction.
"""

from typing import Any

import numpy as np

from .salsa import Array, ReferenceSaLSa


class ReferenceAdEMAMix(ReferenceSaLSa):
    """As `ReferenceSaLSa`; groups may have `alpha` and `slow_beta`."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.n = [np.zeros_like(w) for w in self.params]
        for group in self.groups:
            group.setdefault("alpha", 5.0)
            group.setdefault("slow_beta", 0.9999)

    def _update(self, i: int, gi: Array, group: dict[str, Any]) -> Array:
        adams = super()._update(i, gi, group)
        beta = group["slow_beta"]
        self.n[i] = beta * self.n[i] + (1 - beta) * gi
        slow = self._preconditioned(self.n[i], self.v[i], self.t[i], group)
        return adams + group["alpha"] * slow
