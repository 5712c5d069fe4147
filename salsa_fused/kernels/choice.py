"""Which backend serves which weight."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..warning import warn
from . import compiled, triton_backend
from .interface import Backend
from .native import NativeBackend
from .native_cuda import NativeCudaBackend
from .reference import ReferenceBackend
from .triton_backend import TritonBackend

BACKENDS: dict[str, Backend] = {
    "triton": TritonBackend(),
    "native": NativeBackend(),
    "reference": ReferenceBackend(),
}

NATIVE_CUDA = NativeCudaBackend()  # what `native` is on a GPU

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
    on_gpu = weight.device.type == "cuda"
    if forced is not None:
        if forced is BACKENDS["native"] and on_gpu:
            forced = NATIVE_CUDA
        reason = forced.refusal(weight, gradient_dtype)
        if reason is not None:
            raise RuntimeError(
                f"backend {forced.name!r} was asked for and cannot serve a weight of shape "
                f"{tuple(weight.shape)}, {weight.dtype}, on {weight.device}: {reason}. "
                f"Leave backend=None (and ${ENVIRONMENT_VARIABLE} unset) to choose another."
            )
        return forced
    candidates = [BACKENDS["triton"], NATIVE_CUDA] if on_gpu else []  # the fastest first
    if weight.device.type == "cpu":
        candidates = [BACKENDS["native"]]
    candidates.append(BACKENDS["reference"])
    chosen = next(b for b in candidates if b.refusal(weight, gradient_dtype) is None)
    if chosen is not candidates[0]:
        _warn_of_what_is_missing(weight, chosen)
    return chosen


_warned_of: set[str] = set()


def _warn_of_what_is_missing(weight: Tensor, chosen: Backend) -> None:
    """Say once for each kind of device that something is missing which could be there."""
    kind = weight.device.type
    reason = {"cpu": compiled.missing, "cuda": lambda: _no_triton(weight)}.get(kind, lambda: None)()
    if reason is not None and kind not in _warned_of:
        _warned_of.add(kind)
        kernels = "compiled" if kind == "cpu" else "Triton"
        instead = "its CUDA C++ kernels serve" if chosen is NATIVE_CUDA else "several times slower"
        warn(
            f"salsa_fused runs without its {kernels} kernels, {instead}: {reason}. "
            "`python -m salsa_fused` tells more.",
        )


def _no_triton(weight: Tensor) -> str | None:
    return triton_backend.missing() or triton_backend.launch_failure(weight.device)
