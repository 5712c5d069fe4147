"""Backend ``native`` on a GPU: the kernels in CUDA C++ (``csrc/``), built by ``pip install``.

They serve where Triton cannot run.  Table, chunks and bits are Triton's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from .compiled import load, reason_of_absence
from .device_copy import (
    on_device,
    places_on_device,
    send,
    table_on_device,
    window_starts_on_device,
)
from .interface import DIRECTIONS
from .launch import Launch
from .layout import FAST_DTYPES, unfit_for_fast_kernels

module, _import_error = load("_native_cuda")


def missing() -> str | None:
    """Why the compiled module cannot serve; None if it can."""
    if module is None:
        return reason_of_absence("cuda", _import_error)
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip is not None:
        return "torch is built for ROCm, not for CUDA"
    return None


def description() -> str:
    """What the compiled module was built for, in words."""
    if module is None:
        raise RuntimeError(f"backend 'native' is not available on a GPU: {missing()}")
    return f"CUDA C++ for compute capability {module.architectures.replace(',', ', ')}"


class NativeCudaBackend:
    name = "native"
    chunk_size = 1 << 14
    vector_bytes = 16

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        if (reason := missing()) is not None:
            return reason
        return unfit_for_fast_kernels(weight, gradient_dtype) or launch_failure(weight.device)

    def first_trial(self, launch: Launch) -> Tensor:
        partials = torch.empty(launch.chunks.count, dtype=torch.float64, device=launch.device)
        _ready("first_trial", launch, partials.data_ptr())()
        launch.moved = True
        return partials.sum()  # no atomics in it: the same order in every run

    def next_trial(self, launch: Launch) -> None:
        _ready("next_trial", launch)()

    def adam_step(self, launch: Launch) -> Callable[[], None]:
        return _ready("adam_step", launch)

    def sgd_step(self, launch: Launch) -> Callable[[], None]:
        return _ready("sgd_step", launch)

    def trust_ratios(self, launch: Launch, clip: float) -> Tensor:
        n_rows = len(launch.weights)
        partials = torch.empty(2 * launch.chunks.count, dtype=torch.float64, device=launch.device)
        ratios = torch.empty(n_rows, dtype=torch.float32, device=launch.device)
        parts = places_on_device(launch)
        arguments = (partials.data_ptr(), parts.data_ptr(), n_rows, clip, ratios.data_ptr())
        _ready("trust_ratios", launch, *arguments, writes=False)()
        return ratios

    def alignment(self, launch: Launch) -> Tensor:
        starts = window_starts_on_device(launch)
        with launch.over_all():
            partials = torch.empty(launch.chunks.count, dtype=torch.float64, device=launch.device)
            arguments = (starts.data_ptr(), partials.data_ptr())
            _ready("alignment", launch, *arguments, writes=False, classed=False)()
        return partials.sum()


@cache
def launch_failure(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device: another architecture, or too old a driver."""
    assert module is not None
    try:
        with on_device(device):
            module.probe(device.index or 0)
    except RuntimeError as error:
        return (
            f"it is built for compute capability {module.architectures}, and does not load here: "
            f"{error} (SALSA_FUSED_CUDA_ARCHS builds for others)"
        )
    return None


def _ready(
    kernel: str, launch: Launch, *arguments: float, writes: bool = True, classed: bool = True
) -> Callable[[], None]:
    """Send the table, with the classes where they are read; what is returned launches."""
    assert module is not None
    with on_device(launch.device) as stream:
        rows, chunks = table_on_device(launch, stream)
        classes = send(launch.raw_classes, launch.device) if classed else None
    native_launch = module.CudaLaunch(
        rows.data_ptr(),
        chunks.data_ptr(),
        launch.chunks.count,
        launch.chunks.n_vector,
        0 if classes is None else classes.data_ptr(),
        0 if launch.saved is None else launch.saved.data_ptr(),
        0 if launch.skip is None else launch.skip.data_ptr(),
        FAST_DTYPES.index(launch.dtype),
        launch.device.index or 0,
        stream or 0,
        DIRECTIONS.index(launch.direction),
        0 if launch.ratios is None else launch.ratios.data_ptr(),
    )
    # until the launch is queued
    held = (rows, chunks, classes, launch.saved, launch.skip, launch.ratios)
    run = partial(getattr(module, kernel), native_launch, *arguments)
    return partial(_write, run, launch.device, launch.stepped if writes else [], held)


def _write(
    run: Callable[[], None], device: torch.device, weights: list[Tensor], held: object
) -> None:
    # autograd does not see writes through addresses
    torch.autograd.graph.increment_version(weights)
    with on_device(device):
        run()
