"""Which backend serves which weight."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..warning import warn
from . import native
from .interface import Backend
from .native import NativeBackend
from .reference import ReferenceBackend

BACKENDS: dict[str, Backend] = {"native": NativeBackend(), "reference": ReferenceBackend()}

ENVIRONMENT_VARIABLE = "SALSA_FUSED_BACKEND"


def forced_backend(name: str | None) -> Backend | None:
    """The backend that the user asks for, by argument or by environment; None: choose freely.

    Raises:
        ValueError: there is no backend of that name.
    """
    source = "backend"
    if name is None:
        source, name = ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is None:
        return None
    if name not in BACKENDS:
        known = ", ".join(repr(known) for known in BACKENDS)
        raise ValueError(f"{source} is {name!r}; the backends are {known}, or None to choose")
    return BACKENDS[name]


def choose_backend(
    weight: Tensor, gradient_dtype: torch.dtype, forced: Backend | None = None
) -> Backend:
    """The fastest backend that serves this weight, or the forced one.

    Raises:
        RuntimeError: the forced backend cannot serve it; the message says why.
    """
    if forced is not None:
        reason = forced.refusal(weight, gradient_dtype)
        if reason is not None:
            raise RuntimeError(
                f"backend {forced.name!r} was asked for and cannot serve a weight of shape "
                f"{tuple(weight.shape)}, {weight.dtype}, on {weight.device}: {reason}. "
                f"Leave backend=None (and ${ENVIRONMENT_VARIABLE} unset) to choose another."
            )
        return forced
    if weight.device.type == "cpu" and native.missing() is not None:
        _warn_of_slow_cpu()
    return next(b for b in BACKENDS.values() if b.refusal(weight, gradient_dtype) is None)


_warned_of_slow_cpu = False


def _warn_of_slow_cpu() -> None:
    global _warned_of_slow_cpu
    if not _warned_of_slow_cpu:
        _warned_of_slow_cpu = True
        warn(
            f"salsa_fused runs without its compiled kernels, several times slower: "
            f"{native.missing()}. `python -m salsa_fused` tells more.",
        )
