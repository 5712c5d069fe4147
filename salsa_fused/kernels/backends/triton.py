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

from ..backend import unfit_for_fast_kernels
from ..work import Work
from .device_table import (
    chunk_ranges_on_device,
    on_device,
    send,
    table_on_device,
    window_starts_on_device,
)

THREADS = 256  # of a program; each holds one vector of an aligned chunk at a time


class TritonBackend:
    """See :class:`~salsa_fused.kernels.backend.Backend`."""

    name = title = "triton"
    devices: tuple[str, ...] = ("cuda",)
    kernels, instead = "Triton", "faster"  # nothing is faster
    chunk_size = 1 << 14
    vector_bytes = 16  # the widest access of a GPU

    def missing(self, device: torch.device) -> str | None:
        return missing() or launch_failure(device)

    def describe(self) -> str:
        reason = missing()
        if reason is None and torch.cuda.is_available():
            reason = launch_failure(torch.device("cuda"))
        if reason is not None:
            return f"missing: {reason}"
        return f"available for fp32, bf16 and fp16: {description()}"

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        if (reason := missing()) is not None:
            return reason
        if weight.device.type != ("cpu" if interpreted() else "cuda"):
            hint = " (only under TRITON_INTERPRET=1)" if weight.device.type == "cpu" else ""
            return f"it has no kernel for device {weight.device.type!r}{hint}"
        return unfit_for_fast_kernels(weight, gradient_dtype) or launch_failure(weight.device)

    def first_trial(self, work: Work) -> Tensor:
        assert work.saved is not None
        partials = torch.empty(work.chunks.count, dtype=torch.float64, device=work.device)
        tensors = work.saved.memory, work.ratios, partials
        _ready("first_trial", work, *tensors)()
        work.saved.filled = True
        return partials.sum()  # no atomics in it: the same order in every run

    def next_trial(self, work: Work) -> None:
        assert work.saved is not None
        _ready("next_trial", work, work.saved.memory, work.ratios)()

    def step(self, work: Work) -> Callable[[], None]:
        saved = None if work.saved is None else work.saved.memory
        return _ready("step", work, saved, work.ratios, work.skip)

    def trust_ratios(self, work: Work, clip: float) -> Tensor:
        device, n_rows = work.device, len(work.weights)
        partials = torch.empty(2 * work.chunks.count, dtype=torch.float64, device=device)
        ratios = torch.empty(n_rows, dtype=torch.float32, device=device)
        _ready("norms", work, partials, writes=False)()
        arguments = (partials, chunk_ranges_on_device(work), clip, ratios)
        with on_device(device):
            start(_kernels().trust_ratios, n_rows, arguments, _options())
        return ratios

    def alignment(self, work: Work) -> Tensor:
        starts = window_starts_on_device(work)
        partials = torch.empty(work.chunks.count, dtype=torch.float64, device=work.device)
        _ready("alignment", work, starts, partials, writes=False, with_scalars=False)()
        return partials.sum()


def _ready(
    name: str,
    work: Work,
    *tensors: Tensor | None,
    writes: bool = True,
    with_scalars: bool = True,
) -> Callable[[], None]:
    """Send the table, and the scalars where the kernel reads them, and compile the kernel.

    Returns:
        A function that launches it.
    """
    kernel, device = getattr(_kernels(), name), work.device
    direction: str | None = work.direction.arithmetic
    formats = work.beside.code
    if not with_scalars:  # one kernel for all directions, which reads no moment
        direction, formats = None, formats & 1
    constants = _constants(work.dtype, direction, formats)
    with on_device(device) as stream:
        scalars = (send(work.raw_scalars, device),) if with_scalars else ()
        arguments = (*table_on_device(work, stream), *scalars, *tensors, work.chunks.n_vector)
        given = [tensor is None for tensor in tensors]
        variant = (name, work.dtype, direction, formats, device, *given)
        if variant not in _compiled:
            compile_only(kernel, arguments, constants)
            _compiled.add(variant)

    def write() -> None:
        # autograd does not see writes through addresses
        torch.autograd.graph.increment_version(work.stepped if writes else [])
        with on_device(device):
            start(kernel, work.chunks.count, arguments, constants)

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
def _constants(dtype: torch.dtype, direction: str | None, formats: int) -> dict[str, Any]:
    constants = {
        "DTYPE": _kernels().DTYPES[dtype],
        "VECTOR": TritonBackend.vector_bytes // dtype.itemsize,
        "FORMATS": formats,
        **_options(),
    }
    return constants if direction is None else {**constants, "DIRECTION": direction}


def _options() -> dict[str, Any]:
    return {
        "THREADS": THREADS,
        "num_warps": THREADS // 32,
        "enable_fp_fusion": False,  # fma would give other bits than every other backend
    }


@cache
def _kernels() -> ModuleType:
    return importlib.import_module("salsa_fused.kernels.backends.triton_kernels")


# -- where it can run -------------------------------------------------------------------------


def interpreted() -> bool:
    """Tell whether Triton runs its kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@cache
def missing() -> str | None:
    """Return why there is no Triton here, or None if there is."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if interpreted() or torch.cuda.is_available():
        return None
    return "there is no CUDA device"


@cache
def launch_failure(device: torch.device) -> str | None:
    """Return why Triton cannot launch on this device, found by launching once; None if it can.

    It compiles its launcher at run time: without a C compiler nothing launches.
    """
    try:
        if device.type == "cuda":
            with torch.cuda.device(device):
                number = torch.empty(1, dtype=torch.int32, device=device)
                _kernels().probe[(1,)](number, enable_fp_fusion=False)
        else:
            _kernels()
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # that says nothing of Triton: the latter comes from what ran on the device before
    except Exception as error:  # whatever the compilers, the driver or Triton raise
        return f"Triton cannot launch a kernel here: {type(error).__name__}: {error}"
    return None


def description() -> str:
    """Return its version and way of running, in words."""
    if (reason := missing()) is not None:
        raise RuntimeError(f"backend 'triton' is not available: {reason}")
    version = importlib.import_module("triton").__version__
    if interpreted():
        return f"Triton {version}, interpreted on the CPU (TRITON_INTERPRET=1)"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"Triton {version}, {', '.join(dict.fromkeys(names))}"
