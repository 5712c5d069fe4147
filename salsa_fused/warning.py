"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from types import FrameType

LIBRARIES = ("salsa_fused", "torch", "contextlib")


def warn(message: str) -> None:
    """Warn at the nearest caller outside this package and torch (its decorators stand between)."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _in_library(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def first_of(names: Sequence[str]) -> str:
    """Return some of the names, for a message that stays short: "a, b, c and 4 more"."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


class Once:
    """Warnings of an optimizer, one of each kind: copies and pickles remember what was said."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, kind: str, message: str) -> None:
        """Warn, unless a warning of this kind was given before."""
        if kind not in self._said:
            self._said.add(kind)
            warn(message)


def _in_library(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in LIBRARIES
