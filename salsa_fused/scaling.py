"""``torch.amp.GradScaler`` works around the closure, not in it.

The search compares losses, and tests their decrease against the gradients' slope: both have to be
of one scale, and the scale changes from step to step.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from threading import get_ident
from typing import Any
from weakref import ReferenceType, ref

import torch

RECIPE = (
    "the closure uses a GradScaler, but the search needs the loss as it is. Leave scaling and "
    "backward() outside of it: `with optimizer.first_evaluation(): loss = closure()`, "
    "`scaler.scale(loss).backward()`, `scaler.step(optimizer, closure, loss=loss)`, "
    "`scaler.update()`"
)

_scaler_class: Any = getattr(torch.amp, "GradScaler", object)  # where there is none, nothing scales

# Every `refused()` that lasts, by its id, and its thread. One that an interrupt kept from ending is
# known by its death; no finalizer of Python's, which would swallow what a signal's handler raises.
_refusing: dict[int, tuple[ReferenceType[refused], int]] = {}
_lock = threading.RLock()  # re-entrant: a signal's handler may take a step in the midst of it

_own_scale: Callable[..., Any] | None = None  # what was found on the class at last
_watched_scale: Callable[..., Any] | None = None  # and what was put in its place


class refused:  # no generator: that would take twice as long, in every step
    """While this lasts, a GradScaler that scales in this thread is an error with the recipe.

    ``scale`` is watched only then, in all threads, and is torch's own again after the last of them.
    """

    __slots__ = ("__weakref__",)

    def __enter__(self) -> None:
        with _lock:
            if _refusing:
                _forget_the_dead()
            if not _refusing:
                _begin_to_watch()
            _refusing[id(self)] = (ref(self), get_ident())

    def __exit__(self, *details: object) -> None:
        with _lock:
            _refusing.pop(id(self), None)
            if not _refusing:
                _end_watching()


def _forget_the_dead() -> None:
    for key in [key for key, (reference, _) in _refusing.items() if reference() is None]:
        del _refusing[key]


def _begin_to_watch() -> None:
    global _own_scale, _watched_scale
    found = vars(_scaler_class).get("scale")
    if found is None or found is _watched_scale:
        return
    if found is not _own_scale:  # mostly it is the one of the step before
        _own_scale, _watched_scale = found, _watched(found)
    _scaler_class.scale = _watched_scale


def _end_watching() -> None:
    # not where somebody has put another one over it in the meantime
    if _watched_scale is not None and vars(_scaler_class).get("scale") is _watched_scale:
        _scaler_class.scale = _own_scale


def _watched(scale: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(scale)
    def watched(self: Any, outputs: Any) -> Any:
        with _lock:
            _forget_the_dead()
            refuses = any(thread == get_ident() for _, thread in _refusing.values())
        if refuses and self.is_enabled():
            raise RuntimeError(RECIPE)
        return scale(self, outputs)

    return watched
