"""Backend ``native`` on a GPU: the kernels in CUDA C++ (``csrc/``), built by ``pip install``.

They serve where Triton cannot run.  Rows, chunks and bits are Triton's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from ..backend import FAST_DTYPES, unfit_for_fast_kernels
from ..compiled import load, reason_of_absence
from ..directions import CODES
from ..work import Work
from .device_table import (
    chunk_ranges_on_device,
    on_device,
    send,
    table_on_device,
    window_starts_on_device,
)

module, _import_error = load("_native_cuda")


def missing() -> str | None:
    """Return why the compiled module cannot serve, or None if it can."""
    if module is None:
        return reason_of_absence("cuda", _import_error)
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip is not None:
        return "torch is built for ROCm, not for CUDA"
    return None


def description() -> str:
    """Return what the compiled module was built for, in words."""
    if module is None:
        raise RuntimeError(f"backend 'native' is not available on a GPU: {missing()}")
    return f"CUDA C++ for compute capability {module.architectures.replace(',', ', ')}"


class CudaBackend:
    """See :class:`~salsa_fused.kernels.backend.Backend`."""

    name, title = "native", "native, cuda"
    devices: tuple[str, ...] = ("cuda",)
    kernels, instead = "CUDA C++", "its CUDA C++ kernels serve"
    chunk_size = 1 << 14
    vector_bytes = 16

    def missing(self, device: torch.device) -> str | None:
        return missing() or launch_failure(device)

    def describe(self) -> str:
        reason = missing()
        if module is None:
            return f"missing: {reason}"
        if reason is None:
            reason = launch_failure(torch.device("cuda", 0))
        served = "available for fp32, bf16 and fp16" if reason is None else f"not used: {reason}"
        return f"{served}: {description()}"

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        if (reason := missing()) is not None:
            return reason
        return unfit_for_fast_kernels(weight, gradient_dtype) or launch_failure(weight.device)

    def first_trial(self, work: Work) -> Tensor:
        assert work.saved is not None
        partials = torch.empty(work.chunks.count, dtype=torch.float64, device=work.device)
        _ready("first_trial", work, partials.data_ptr())()
        work.saved.filled = True
        return partials.sum()  # no atomics in it: the same order in every run

    def next_trial(self, work: Work) -> None:
        _ready("next_trial", work)()

    def step(self, work: Work) -> Callable[[], None]:
        return _ready("step", work)

    def trust_ratios(self, work: Work, clip: float) -> Tensor:
        n_rows = len(work.weights)
        partials = torch.empty(2 * work.chunks.count, dtype=torch.float64, device=work.device)
        ratios = torch.empty(n_rows, dtype=torch.float32, device=work.device)
        ranges = chunk_ranges_on_device(work)
        arguments = (partials.data_ptr(), ranges.data_ptr(), n_rows, clip, ratios.data_ptr())
        _ready("trust_ratios", work, *arguments, writes=False)()
        return ratios

    def alignment(self, work: Work) -> Tensor:
        starts = window_starts_on_device(work)
        partials = torch.empty(work.chunks.count, dtype=torch.float64, device=work.device)
        arguments = (starts.data_ptr(), partials.data_ptr())
        _ready("alignment", work, *arguments, writes=False, with_scalars=False)()
        return partials.sum()


@cache
def launch_failure(device: torch.device) -> str | None:
    """Return why the kernels cannot run there: another architecture, or too old a driver."""
    assert module is not None
    try:
        with on_device(device):
            module.probe(device.index or 0)
    except RuntimeError as error:
        return (
            f"it is built for compute capability {module.architectures}, and does not load here: "
            f"{error} (SALSA_FUSED_CUDA_ARCHS builds for others; or the driver is older than the "
            "nvcc that built it)"
        )
    return None


def _ready(
    kernel: str, work: Work, *arguments: float, writes: bool = True, with_scalars: bool = True
) -> Callable[[], None]:
    """Send the table, and the scalars where they are read; return a function that launches."""
    assert module is not None
    with on_device(work.device) as stream:
        rows, chunks = table_on_device(work, stream)
        scalars = send(work.raw_scalars, work.device) if with_scalars else None
    saved = None if work.saved is None else work.saved.memory  # of weights with masters None, too
    launch = module.CudaLaunch(
        rows.data_ptr(),
        chunks.data_ptr(),
        work.chunks.count,
        work.chunks.n_vector,
        0 if scalars is None else scalars.data_ptr(),
        0 if saved is None else saved.data_ptr(),
        0 if work.skip is None else work.skip.data_ptr(),
        FAST_DTYPES.index(work.dtype),
        work.device.index or 0,
        stream or 0,
        CODES[work.direction.arithmetic],
        0 if work.ratios is None else work.ratios.data_ptr(),
        work.beside.code,
    )
    run = partial(getattr(module, kernel), launch, *arguments)
    return partial(_run, run, work, (rows, chunks, scalars), writes=writes)


def _run(run: Callable[[], None], work: Work, held: object, *, writes: bool) -> None:
    """Launch; until that is queued, ``work`` and ``held`` keep all whose addresses it has."""
    # autograd does not see writes through addresses
    torch.autograd.graph.increment_version(work.stepped if writes else [])
    with on_device(work.device):
        run()
