"""``torch.amp.GradScaler`` works around the closure, not in it.

The search compares losses, and tests their decrease against the gradients' slope: both have to be
of one scale, and the scale changes from step to step.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.amp import GradScaler

RECIPE = (
    "the closure uses a GradScaler, but the search needs the loss as it is. Leave scaling and "
    "backward() outside of it: `with optimizer.first_evaluation(): loss = closure()`, "
    "`scaler.scale(loss).backward()`, `scaler.step(optimizer, closure, loss=loss)`, "
    "`scaler.update()`"
)

_this_thread = threading.local()


@contextmanager
def refused() -> Iterator[None]:
    """While this lasts, a GradScaler that scales in this thread is an error with the recipe."""
    before = getattr(_this_thread, "refuses", False)
    _this_thread.refuses = True
    try:
        yield
    finally:
        _this_thread.refuses = before


def _watched(scale: Any) -> Any:
    @functools.wraps(scale)
    def watched(self: GradScaler, outputs: Any) -> Any:
        if getattr(_this_thread, "refuses", False) and self.is_enabled():
            raise RuntimeError(RECIPE)
        return scale(self, outputs)

    return watched


GradScaler.scale = _watched(GradScaler.scale)  # type: ignore[method-assign]  # once, for all threads
