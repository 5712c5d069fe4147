"""``torch.amp.GradScaler`` works around the closure, not in it.

The search compares losses, and tests their decrease against the gradients' slope: both have to be
of one scale, and the scale changes from step to step.
"""

from __future__ import annotations

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


@contextmanager
def refused() -> Iterator[None]:
    """While this lasts, a GradScaler that scales in this thread is an error with the recipe."""
    scale, owner, active = GradScaler.scale, threading.get_ident(), True

    def refuse(self: GradScaler, outputs: Any) -> Any:
        if active and self.is_enabled() and threading.get_ident() == owner:
            raise RuntimeError(RECIPE)
        return scale(self, outputs)

    GradScaler.scale = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        active = False  # should another thread have put this one back
        GradScaler.scale = scale  # type: ignore[method-assign]
