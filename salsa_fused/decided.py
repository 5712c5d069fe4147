"""What a step has decided, before it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .line_search import LineSearch
from .look_back import Window


class Decided(NamedTuple):
    """How a step goes on: as a search has found, or without one."""

    skipped: bool
    search: LineSearch | None = None
    window: Window | None = None  # after the search
    look: Sequence[Tensor] = ()  # back on the window, by a step without a search
    flag: Tensor | None = None  # on a device, not 0: nothing is written


PLAIN = Decided(skipped=False)
