"""Which backend serves which weight."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..warning import warn
from . import native, triton_backend
from .interface import Backend
from .native import NativeBackend
from .reference import ReferenceBackend
from .triton_backend import TritonBackend

BACKENDS: dict[str, Backend] = {  # the fastest first
    "triton": TritonBackend(),
    "native": NativeBackend(),
    "reference": ReferenceBackend(),
}

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
    candidates = [*BACKENDS.values()]
    if weight.device.type == "cpu":
        candidates.remove(BACKENDS["triton"])  # interpreted it serves there, to be tested
    chosen = next(b for b in candidates if b.refusal(weight, gradient_dtype) is None)
    if chosen.name == "reference":
        _warn_of_slow_kernels(weight)
    return chosen


_warned_of: set[str] = set()


def _warn_of_slow_kernels(weight: Tensor) -> None:
    """Say once for each kind of device that something is missing which could be there."""
    kind = weight.device.type
    reason = {"cpu": native.missing, "cuda": lambda: _no_triton(weight)}.get(kind, lambda: None)()
    if reason is not None and kind not in _warned_of:
        _warned_of.add(kind)
        kernels = "compiled" if kind == "cpu" else "Triton"
        warn(
            f"salsa_fused runs without its {kernels} kernels, several times slower: {reason}. "
            "`python -m salsa_fused` tells more.",
        )


def _no_triton(weight: Tensor) -> str | None:
    return triton_backend.missing() or triton_backend.launch_failure(weight.device)
