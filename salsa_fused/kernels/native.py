"""Backend ``native``: the kernels in C++ (``csrc/``), one parallel region each.

For dense fp32, bf16 and fp16 weights on the CPU, with moments in fp32.  The compiled module knows
nothing of torch: it is handed addresses and sizes.
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

from .compiled import missing, module
from .interface import DIRECTIONS
from .launch import Launch
from .layout import FAST_DTYPES, unfit_for_fast_kernels

BYTES_A_PARAMETER = 20  # that a trial moves at most


class NativeBackend:
    name = "native"
    chunk_size = 1 << 15  # enough of them to feed every thread, each worth a function call
    vector_bytes = 0  # the compiler sees to it

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        if module is None:
            return missing()
        if weight.device.type != "cpu":
            return f"it has no kernel for device {weight.device.type!r}"
        return unfit_for_fast_kernels(weight, gradient_dtype)

    def first_trial(self, launch: Launch) -> Tensor:
        assert module is not None and launch.saved is not None
        module.cpu_advise_huge_pages(launch.saved.data_ptr(), launch.saved.nbytes)
        partials = array("d", bytes(8 * launch.chunks.count))
        slope = _ready("cpu_first_trial", launch, partials.buffer_info()[0])()
        launch.moved = True
        return torch.tensor(slope, dtype=torch.float64, device="cpu")

    def next_trial(self, launch: Launch) -> None:
        _ready("cpu_next_trial", launch)()

    def adam_step(self, launch: Launch) -> Callable[[], None]:
        return _ready_unless_skipped("cpu_adam_step", launch)

    def sgd_step(self, launch: Launch) -> Callable[[], None]:
        return _ready_unless_skipped("cpu_sgd_step", launch)

    def trust_ratios(self, launch: Launch, clip: float) -> Tensor:
        partials = array("d", bytes(16 * launch.chunks.count))
        n_rows = len(launch.weights)
        ratios = torch.empty(n_rows, dtype=torch.float32, device="cpu")
        to = (partials.buffer_info()[0], ratios.data_ptr())
        _ready("cpu_trust_ratios", launch, *to, n_rows, clip, writes=False)()
        return ratios

    def alignment(self, launch: Launch) -> Tensor:
        starts = launch.window_start_addresses.buffer_info()[0]
        with launch.over_all():
            partials = array("d", bytes(8 * launch.chunks.count))
            to = partials.buffer_info()[0]
            total = _ready("cpu_alignment", launch, starts, to, writes=False)()
        return torch.tensor(total, dtype=torch.float64, device="cpu")


def _ready_unless_skipped(kernel: str, launch: Launch) -> Callable[[], None]:
    if launch.skip is not None and launch.skip.item() != 0.0:
        return lambda: None
    return _ready(kernel, launch)


def _ready(
    kernel: str, launch: Launch, *arguments: float, writes: bool = True
) -> Callable[[], Any]:
    """What is returned runs the kernel on what the launch is now."""
    weights = launch.stepped if writes else []
    assert module is not None
    classes = launch.raw_classes  # it has to live as long as the kernel runs
    native_launch = module.CpuLaunch(
        launch.raw_rows.buffer_info()[0],
        launch.chunks.raw.buffer_info()[0],
        launch.chunks.count,
        classes.buffer_info()[0],
        0 if launch.saved is None else launch.saved.data_ptr(),
        FAST_DTYPES.index(launch.dtype),
        launch.elements * BYTES_A_PARAMETER > _last_level_cache(),
        torch.get_num_threads(),
        DIRECTIONS.index(launch.direction),
        0 if launch.ratios is None else launch.ratios.data_ptr(),
    )
    run = partial(getattr(module, kernel), native_launch, *arguments)
    return partial(_run, run, weights, (classes, launch.saved, launch.ratios))


def _run(run: Callable[[], Any], weights: list[Tensor], held: object) -> Any:
    # autograd does not see writes through addresses; told before, while the tensors are in cache
    torch.autograd.graph.increment_version(weights)
    return run()


@cache
def _last_level_cache() -> int:
    """Bytes that the last cache before memory holds; 32 MiB where the system does not say."""
    with suppress(OSError, ValueError):
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(size.removesuffix("K")) << 10
    return 32 << 20
