"""Backend ``native`` on the CPU: the kernels in C++ (``csrc/``), one parallel region each.

For dense fp32, bf16 and fp16 weights.  The compiled module knows nothing of
torch: it is handed addresses and sizes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import compiled
from ..backend import FAST_DTYPES, unfit_for_fast_kernels
from ..directions import CODES
from ..work import Work

BYTES_A_PARAMETER = 20  # that a trial moves at most


class CpuBackend:
    """See :class:`~salsa_fused.kernels.backend.Backend`."""

    name, title = "native", "native, cpu"
    devices: tuple[str, ...] = ("cpu",)
    kernels, instead = "compiled", "faster"  # nothing is faster
    chunk_size = 1 << 15  # enough of them to feed every thread, each worth a function call
    vector_bytes = 0  # the compiler sees to it

    def missing(self, device: torch.device) -> str | None:
        return compiled.missing()

    def describe(self) -> str:
        if compiled.module is None:
            return f"missing: {compiled.missing()}"
        threads = "OpenMP" if compiled.module.openmp else "one thread (built without OpenMP)"
        found = f"C++, compiler {compiled.module.compiler}, {threads}"
        return f"available on the CPU for fp32, bf16 and fp16: {found}"

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        if (reason := compiled.missing()) is not None:
            return reason
        if weight.device.type != "cpu":
            return f"it has no kernel for device {weight.device.type!r}"
        return unfit_for_fast_kernels(weight, gradient_dtype)

    def first_trial(self, work: Work) -> Tensor:
        saved = work.saved
        assert compiled.module is not None and saved is not None
        if saved.memory is not None:
            compiled.module.cpu_advise_huge_pages(saved.memory.data_ptr(), saved.memory.nbytes)
        partials = array("d", bytes(8 * work.chunks.count))
        slope = _ready("cpu_first_trial", work, partials.buffer_info()[0])()
        saved.filled = True
        return torch.tensor(slope, dtype=torch.float64, device="cpu")

    def next_trial(self, work: Work) -> None:
        _ready("cpu_next_trial", work)()

    def step(self, work: Work) -> Callable[[], None]:
        if work.skip is not None and work.skip.item() != 0.0:
            return lambda: None
        return _ready("cpu_step", work)

    def trust_ratios(self, work: Work, clip: float) -> Tensor:
        partials = array("d", bytes(16 * work.chunks.count))
        ratios = torch.empty(len(work.weights), dtype=torch.float32, device="cpu")
        to = (partials.buffer_info()[0], ratios.data_ptr())
        _ready("cpu_trust_ratios", work, *to, len(work.weights), clip, writes=False)()
        return ratios

    def alignment(self, work: Work) -> Tensor:
        partials = array("d", bytes(8 * work.chunks.count))
        pointers = (work.window.addresses.buffer_info()[0], partials.buffer_info()[0])
        total = _ready("cpu_alignment", work, *pointers, writes=False)()
        return torch.tensor(total, dtype=torch.float64, device="cpu")


def _ready(kernel: str, work: Work, *arguments: float, writes: bool = True) -> Callable[[], Any]:
    """Return a function that runs the kernel on this work."""
    saved = None if work.saved is None else work.saved.memory  # of weights with masters None, too
    assert compiled.module is not None
    launch = compiled.module.CpuLaunch(
        work.rows.buffer_info()[0],
        work.chunks.raw.buffer_info()[0],
        work.chunks.count,
        work.raw_scalars.buffer_info()[0],
        0 if saved is None else saved.data_ptr(),
        FAST_DTYPES.index(work.dtype),
        work.elements * BYTES_A_PARAMETER > _last_level_cache(),
        torch.get_num_threads(),
        CODES[work.direction.arithmetic],
        0 if work.ratios is None else work.ratios.data_ptr(),
        work.beside.code,
    )
    run = partial(getattr(compiled.module, kernel), launch, *arguments)
    return partial(_run, run, work, writes=writes)


def _run(run: Callable[[], Any], work: Work, *, writes: bool) -> Any:
    """Run the kernel; ``work`` lives as long, with all whose addresses the launch has."""
    # autograd does not see writes through addresses; told before, while the tensors are in cache
    torch.autograd.graph.increment_version(work.stepped if writes else [])
    return run()


@cache
def _last_level_cache() -> int:
    """Return how many bytes the last cache holds; 32 MiB where the system does not say."""
    with suppress(OSError, ValueError):
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(size.removesuffix("K")) << 10
    return 32 << 20
