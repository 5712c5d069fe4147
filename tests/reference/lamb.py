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
        self.largest_ratio = 1.0 if trust_clip is None else max(1.0, trust_clip)
        self.looks.relative = True
        self.trust: list[float | None] = [None] * len(self.params)

    def _descent(self, i: int, gi: Array, group: dict[str, Any]) -> Array:
        """Momentum-free and without decay, but r is that of the final u."""
        m, v = self._moments(i, gi, group["betas"])
        t = self.t[i] + 1
        m_hat = m / (1 - group["betas"][0] ** t)
        r = self._trust_ratio(i, self._preconditioned(m_hat, v, t, group), group)
        return r * self._preconditioned(gi, v, t, group)

    def _bracket(self, i: int, gi: Array, group: dict[str, Any], decay: float) -> Array:
        """The ratio is that of lambda, also where the decay written is less."""
        update = self._update(i, gi, group)
        r = self.trust[i] = self._trust_ratio(i, update, group)
        if math.isinf(self.trust_clip):  # nothing bounds r: it bounds the decay's part
            part = r * self.step_of_decay
            r = r / (1 + part) if part >= 1 else r
        return r * (update + decay * self.params[i])

    def _decay(self, group: dict[str, Any], eta: float) -> float:
        self.step_of_decay = group["lr"] * eta * group["weight_decay"]
        return group["weight_decay"] if math.isinf(self.trust_clip) else super()._decay(group, eta)

    def _trust_ratio(self, i: int, update: Array, group: dict[str, Any]) -> float:
        w = self.params[i]
        u = update + group["weight_decay"] * w
        norm_w, norm_u = math.sqrt(np.sum(w * w)), math.sqrt(np.sum(u * u))
        if norm_w == 0 or norm_u == 0:
            return 1.0
        return min(norm_w / norm_u, self.trust_clip)
