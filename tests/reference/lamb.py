"""LAMB and LAMBC: Adam's direction, scaled per tensor by a trust ratio (arXiv 2011.13584).

u = m_hat / (sqrt(v_hat) + eps) + lambda w,  r = min(||w|| / ||u||, mu),  w <- w - lr eta r u.
"""

import math
from typing import Any

import numpy as np

from .salsa import Array, ReferenceSaLSa


class ReferenceLAMB(ReferenceSaLSa):
    """As `ReferenceSaLSa`; `trust_clip` is mu, None for plain LAMB.

    `trust[i]` is r of tensor i on the last step written; None before its first.
    """

    def __init__(self, *args: Any, trust_clip: float | None = 1.0, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.trust_clip = math.inf if trust_clip is None else trust_clip
        self.trust: list[float | None] = [None] * len(self.params)

    def _descent(self, i: int, gi: Array, group: dict[str, Any]) -> Array:
        """Momentum-free and without decay, but r is that of the final u."""
        m, v = self._moments(i, gi, group["betas"])
        beta1, beta2 = group["betas"]
        m_hat = m / (1 - beta1 ** (self.t[i] + 1))
        v_hat = v / (1 - beta2 ** (self.t[i] + 1))
        denominator = np.sqrt(v_hat) + group["eps"]
        u = m_hat / denominator + group["weight_decay"] * self.params[i]
        return self._trust_ratio(self.params[i], u) * gi / denominator

    def _bracket(self, i: int, gi: Array, group: dict[str, Any]) -> Array:
        u = super()._bracket(i, gi, group)
        r = self.trust[i] = self._trust_ratio(self.params[i], u)
        return r * u

    def _trust_ratio(self, w: Array, u: Array) -> float:
        norm_w, norm_u = math.sqrt(np.sum(w * w)), math.sqrt(np.sum(u * u))
        if norm_w == 0 or norm_u == 0:
            return 1.0
        return min(norm_w / norm_u, self.trust_clip)
