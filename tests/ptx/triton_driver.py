"""Backend `triton` on CPU tensors: compiled for a GPU by Triton, its PTX run by `threads.c`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager

from salsa_fused.kernels.backend import unfit_for_fast_kernels
from salsa_fused.kernels.backends import triton as triton_backend

from .library import Threads

NUMBERS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
POINTERS = {"*i64": torch.int64, "*i32": torch.int32, "*fp32": torch.float32}
POINTERS |= {"*fp64": torch.float64, "*bf16": torch.bfloat16, "*fp16": torch.float16}


class OnTheCpu(triton_backend.TritonBackend):
    """It serves CPU tensors."""

    devices = ("cpu",)

    def refusal(self, weight: torch.Tensor, gradient_dtype: torch.dtype) -> str | None:
        return unfit_for_fast_kernels(weight, gradient_dtype)


class Launcher:
    """Stands for what Triton compiles to call the driver: takes a call's arguments to the PTX."""

    def __init__(self, threads: Threads, launched: list[str], source: Any, metadata: Any):
        self.name, self.threads_of_a_block = metadata.name, metadata.num_warps * 32
        self._launched = launched
        file = get_cache_manager(metadata.hash).get_file(f"{metadata.name}.ptx")
        ptx = Path(file).read_text()
        self._kernel = threads.kernel(ptx)
        kinds = enumerate(source.signature.values())
        self._kinds = [(i, kind) for i, kind in kinds if kind != "constexpr"]
        # the last two are Triton's scratch memory, which no kernel of ours asks for
        assert ptx.count(".param .") == len(self._kinds) + 2
        assert metadata.global_scratch_size == 0 and metadata.profile_scratch_size == 0

    def __call__(
        self, x: int, y: int, z: int, stream: int, function: object, packed: object,
        launch_metadata: object, enter: object, leave: object, *arguments: Any,
    ) -> None:  # fmt: skip
        assert y == z == 1
        self._launched.append(self.name)
        values = [_value(self.name, kind, arguments[i]) for i, kind in self._kinds]
        scratch = [ctypes.c_uint64(0)] * 2
        self._kernel.launch(x, self.threads_of_a_block, [*values, *scratch])


def _value(name: str, kind: str, argument: Any) -> Any:
    if not kind.startswith("*"):
        return NUMBERS[kind](argument)
    assert argument.dtype == POINTERS[kind], (name, kind, argument.dtype)
    return ctypes.c_uint64(argument.data_ptr())


class Driver:
    """What Triton asks of a driver."""

    def __init__(self, threads: Threads, architecture: int):
        self.utils = self
        self.launched: list[str] = []  # names of kernels, in their order
        self.loaded: list[str] = []
        self._threads, self._architecture = threads, architecture

    def launcher_cls(self, source: Any, metadata: Any) -> Launcher:
        return Launcher(self._threads, self.launched, source, metadata)

    def load_binary(self, name: str, *_: object) -> tuple[int, ...]:
        self.loaded.append(name)
        return 1, 2, 40, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        sizes = {"max_shared_mem": 101376, "multiprocessor_count": 84, "max_num_regs": 65536}
        return {**sizes, "warpSize": 32, "mem_clock_rate": 1, "mem_bus_width": 1}

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, 32)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


@contextmanager
def driven(threads: Threads, architecture: int) -> Iterator[Driver]:
    """Within it Triton compiles for this architecture, and launches here."""
    made, before = Driver(threads, architecture), driver._active
    with triton.knobs.cache.scope(), triton.knobs.runtime.scope():
        triton.knobs.cache.dir = str(threads.folder / "triton")
        triton.knobs.runtime.add_stages_inspection_hook = _without_machine_code
        driver.set_active(made)
        _forget()
        try:
            yield made
        finally:
            driver.set_active(before)
            _forget()


def _without_machine_code(*stage: Any) -> tuple[str, str] | None:
    """Leave the assembler out, half of Triton's time: only the PTX is run."""
    if stage:
        _, stages, *_ = stage
        stages["cubin"] = lambda source, metadata: b"-"
        return None
    return "without machine code", "without machine code"


def _forget() -> None:
    """Kernels that Triton compiled for another driver in this process."""
    triton_backend._compiled.clear()
    for kernel in vars(triton_backend._kernels()).values():
        if isinstance(kernel, triton.JITFunction):
            kernel.device_caches.clear()
