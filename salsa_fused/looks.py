"""Looks back that a device has computed, since the host does not wait for them in every step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Looks:
    """Those that the host has not read yet, in their order; see :mod:`salsa_fused.look_back`."""

    def __init__(self) -> None:
        self.unread: list[Tensor] = []

    @staticmethod
    def one(parts: Sequence[Tensor]) -> list[Tensor]:
        """A look, of its parts from different kernels or devices; empty where there are none."""
        if not parts:
            return []
        look = parts[0]
        for part in parts[1:]:
            look = look + part.to(look.device)
        return [look]

    def read(self) -> list[float]:
        """Their values, read now: the host waits for the device."""
        looks = [look.item() for look in self.unread]
        self.unread = []
        return looks
