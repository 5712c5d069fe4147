"""Backend ``triton``: the kernels on a GPU, each one launch for the whole model.

Triton is imported on the first use, and compiles each kernel once for every pair of dtypes.  Under
``TRITON_INTERPRET=1`` the same kernels run on CPU tensors, slowly and without a compiler.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .device_copy import (
    on_device,
    places_on_device,
    send,
    table_on_device,
    window_starts_on_device,
)
from .launch import Launch
from .layout import unfit_for_fast_kernels

THREADS = 256  # of a program; each holds one vector of an aligned chunk at a time


class TritonBackend:
    name = "triton"
    chunk_size = 1 << 14
    vector_bytes = 16  # the widest access of a GPU

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        if (reason := missing()) is not None:
            return reason
        if weight.device.type != ("cpu" if interpreted() else "cuda"):
            hint = " (only under TRITON_INTERPRET=1)" if weight.device.type == "cpu" else ""
            return f"it has no kernel for device {weight.device.type!r}{hint}"
        return unfit_for_fast_kernels(weight, gradient_dtype) or launch_failure(weight.device)

    def first_trial(self, launch: Launch) -> Tensor:
        partials = torch.empty(launch.chunks.count, dtype=torch.float64, device=launch.device)
        tensors = launch.saved, launch.ratios, partials
        _ready("first_trial", launch, *tensors, DIRECTION=launch.direction)()
        launch.moved = True
        return partials.sum()  # no atomics in it: the same order in every run

    def next_trial(self, launch: Launch) -> None:
        _ready("next_trial", launch, launch.saved, launch.ratios, DIRECTION=launch.direction)()

    def adam_step(self, launch: Launch) -> Callable[[], None]:
        return _ready("adam_step", launch, launch.saved, launch.ratios, launch.skip)

    def sgd_step(self, launch: Launch) -> Callable[[], None]:
        return _ready("sgd_step", launch, launch.saved, launch.skip)

    def trust_ratios(self, launch: Launch, clip: float) -> Tensor:
        device = launch.device
        partials = torch.empty(2 * launch.chunks.count, dtype=torch.float64, device=device)
        ratios = torch.empty(len(launch.weights), dtype=torch.float32, device=device)
        _ready("norms", launch, partials, writes=False)()
        arguments = (partials, places_on_device(launch), clip, ratios)
        with on_device(device):
            start(_kernels().trust_ratios, len(launch.weights), arguments, _options())
        return ratios

    def alignment(self, launch: Launch) -> Tensor:
        starts = window_starts_on_device(launch)
        with launch.over_all():
            partials = torch.empty(launch.chunks.count, dtype=torch.float64, device=launch.device)
            _ready("alignment", launch, starts, partials, writes=False, classed=False)()
        return partials.sum()


def _ready(
    name: str,
    launch: Launch,
    *tensors: Tensor | None,
    writes: bool = True,
    classed: bool = True,
    **constants: str,
) -> Callable[[], None]:
    """Send the table, with the classes where the kernel reads them, and compile the kernel.

    What is returned launches it.
    """
    kernel, device = getattr(_kernels(), name), launch.device
    constants = {**_constants(launch.dtype), **constants} if constants else _constants(launch.dtype)
    with on_device(launch.device) as stream:
        classes = (send(launch.raw_classes, launch.device),) if classed else ()
        table = (*table_on_device(launch, stream), *classes)
        arguments = (*table, *tensors, launch.chunks.n_vector)
        given = [tensor is None for tensor in tensors]
        variant = (name, launch.dtype, launch.direction, device, *given)
        if variant not in _compiled:
            compile_only(kernel, arguments, constants)
            _compiled.add(variant)
    programs, weights = launch.chunks.count, launch.stepped if writes else []

    def write() -> None:
        # autograd does not see writes through addresses
        torch.autograd.graph.increment_version(weights)
        with on_device(device):
            start(kernel, programs, arguments, constants)

    return write


_compiled: set[tuple[Any, ...]] = set()  # kernels, by what they are compiled for


def start(
    kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Launch a kernel of :mod:`.triton_kernels` on the current device and stream."""
    kernel[(programs,)](*arguments, **constants)


def compile_only(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    if not interpreted():
        kernel.warmup(*arguments, grid=(1,), **constants)


@cache
def _constants(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "DTYPE": _kernels().DTYPES[dtype],
        "VECTOR": TritonBackend.vector_bytes // dtype.itemsize,
        **_options(),
    }


def _options() -> dict[str, Any]:
    return {
        "THREADS": THREADS,
        "num_warps": THREADS // 32,
        "enable_fp_fusion": False,  # fma would give other bits than every other backend
    }


@cache
def _kernels() -> ModuleType:
    return importlib.import_module("salsa_fused.kernels.triton_kernels")


# -- where it can run -------------------------------------------------------------------------


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@cache
def missing() -> str | None:
    """Why there is no Triton here; None if there is."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if interpreted() or torch.cuda.is_available():
        return None
    return "there is no CUDA device"


@cache
def launch_failure(device: torch.device) -> str | None:
    """Why Triton cannot launch on this device, found by launching once; None if it can.

    It compiles its launcher at run time: without a C compiler nothing launches.
    """
    try:
        if device.type == "cuda":
            with torch.cuda.device(device):
                number = torch.empty(1, dtype=torch.int32, device=device)
                _kernels().probe[(1,)](number, enable_fp_fusion=False)
        else:
            _kernels()
    except torch.OutOfMemoryError:
        raise  # that says nothing of Triton
    except Exception as error:  # whatever the compilers, the driver or Triton raise
        return f"Triton cannot launch a kernel here: {type(error).__name__}: {error}"
    return None


def description() -> str:
    """Version and way of running, in words."""
    if (reason := missing()) is not None:
        raise RuntimeError(f"backend 'triton' is not available: {reason}")
    version = importlib.import_module("triton").__version__
    if interpreted():
        return f"Triton {version}, interpreted on the CPU (TRITON_INTERPRET=1)"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"Triton {version}, {', '.join(dict.fromkeys(names))}"
