"""All backends, and which of them serves which weight."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ...warning import warn
from ..backend import Backend
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .triton import TritonBackend

# the fastest first; to add a backend, write its file and name it here
BACKENDS: list[Backend] = [TritonBackend(), CpuBackend(), CudaBackend(), ReferenceBackend()]

ENVIRONMENT_VARIABLE = "SALSA_FUSED_BACKEND"


def forced_backends(name: str | None) -> list[Backend]:
    """Return those of the name that the user asks for, by argument or by environment.

    Empty: choose freely.

    Raises:
        ValueError: there is no backend of that name.
    """
    source = "backend"
    if name is None:
        source, name = ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is None:
        return []
    found = [backend for backend in BACKENDS if backend.name == name]
    if not found:
        known = ", ".join(dict.fromkeys(repr(backend.name) for backend in BACKENDS))
        raise ValueError(f"{source} is {name!r}; the backends are {known}, or None to choose")
    return found


def choose_backend(
    weight: Tensor, gradient_dtype: torch.dtype, forced: Sequence[Backend] = ()
) -> Backend:
    """Return the fastest backend that serves this weight, or the forced one of its device.

    Raises:
        RuntimeError: the forced backend cannot serve it; the message says why.
    """
    kind = weight.device.type
    candidates = [backend for backend in forced or BACKENDS if kind in backend.devices]
    if forced:
        chosen = (candidates or forced)[0]
        reason = chosen.refusal(weight, gradient_dtype)
        if reason is not None:
            raise RuntimeError(
                f"backend {chosen.name!r} was asked for and cannot serve a weight of shape "
                f"{tuple(weight.shape)}, {weight.dtype}, on {weight.device}: {reason}. "
                f"Leave backend=None (and ${ENVIRONMENT_VARIABLE} unset) to choose another."
            )
        return chosen
    candidates += [backend for backend in BACKENDS if not backend.devices]
    chosen = next(b for b in candidates if b.refusal(weight, gradient_dtype) is None)
    if chosen is not candidates[0]:
        _warn_of_what_is_missing(candidates[0], weight.device, chosen)
    return chosen


_warned_of: set[str] = set()


def _warn_of_what_is_missing(fastest: Backend, device: torch.device, chosen: Backend) -> None:
    """Say once for each kind of device that something is missing which could be there."""
    reason = fastest.missing(device)
    if reason is not None and device.type not in _warned_of:
        _warned_of.add(device.type)
        warn(
            f"salsa_fused runs without its {fastest.kernels} kernels, {chosen.instead}: {reason}. "
            "`python -m salsa_fused` tells more.",
        )
