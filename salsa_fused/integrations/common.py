"""What all integrations need: the optimizer within its wrappers, and its numbers for loggers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..given_loss import is_itself
from ..optimizer import FusedSaLSa

DEEPSPEED = (
    "FusedSaLSa does not run under DeepSpeed, whose engine takes the step by itself: use FSDP2 or "
    "DDP, or torch.optim.AdamW"
)


def unwrapped(optimizer: Any) -> FusedSaLSa:
    """Return the FusedSaLSa within what a trainer has wrapped around it.

    Raises:
        TypeError: there is none.
    """
    found = found_within(optimizer)
    if found is None:
        raise TypeError(
            f"the optimizer must be a salsa_fused.FusedSaLSa, got {type(optimizer).__name__}"
        )
    return found


def found_within(optimizer: Any) -> FusedSaLSa | None:
    """Return the FusedSaLSa within what a trainer has wrapped around it, or None."""
    while optimizer is not None:
        if isinstance(optimizer, FusedSaLSa) and is_itself(optimizer):
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def numbers(optimizer: FusedSaLSa) -> dict[str, float]:
    """Return ``optimizer.metrics()`` for a logger: what is a finite number, as "salsa/name"."""
    return {
        f"salsa/{name}": value
        for name, value in optimizer.metrics().items()
        if not isinstance(value, str) and math.isfinite(value)
    }


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Replace attributes of an object for a while; those of its class come back by themselves."""
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in attributes:
            if name in before:
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)
