"""SGD + SaLSa: d = -g, slope = sum g^2. No momentum, and no state per parameter."""

from typing import Any

from .salsa import Array, ReferenceSaLSa


class ReferenceSGD(ReferenceSaLSa):
    """As `ReferenceSaLSa`; betas and eps of the groups play no part, m, v and t are empty.

    Where every lr is 1 and nothing decays, w - lr eta (g + 0 w) is the accepted trial itself.
    """

    looks_back = False

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.m, self.v, self.t = [], [], []

    def _descent(self, i: int, gi: Array, group: dict[str, Any]) -> Array:
        return gi

    def _update(self, i: int, gi: Array, group: dict[str, Any]) -> Array:
        return gi
