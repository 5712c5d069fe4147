"""Backend ``native``: the three kernels in C++ (``csrc/``), one parallel region each.

Here for dense fp32 weights on the CPU.  The compiled module knows nothing of torch: it is handed
addresses and sizes.
"""

from __future__ import annotations

import importlib
import json
from array import array
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .interface import CHUNK_FIELDS, Launch
from .layout import is_dense

_module: ModuleType | None = None
_import_error = ""
try:
    _module = importlib.import_module("salsa_fused._native")
except ImportError as error:
    _import_error = str(error)


def missing() -> str | None:
    """Why the compiled module is not there; None if it is."""
    if _module is not None:
        return None
    note = Path(__file__).parent.parent / "_build.json"
    if note.exists():
        reason = json.loads(note.read_text()).get("native")
        if reason:
            return f"it was not built: {reason}"
    return f"the compiled module does not load: {_import_error}"


def description() -> str:
    """The compiler and the threading of the compiled module, in words."""
    if _module is None:
        raise RuntimeError(f"backend 'native' is not available: {missing()}")
    threads = "OpenMP" if _module.openmp else "one thread (built without OpenMP)"
    return f"C++, compiler {_module.compiler}, {threads}"


class NativeBackend:
    name = "native"

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        if _module is None:
            return missing()
        if weight.device.type != "cpu":
            return f"it has no kernel for device {weight.device.type!r}"
        if weight.dtype != torch.float32 or gradient_dtype != torch.float32:
            dtype = weight.dtype if weight.dtype != torch.float32 else gradient_dtype
            return f"it has no kernel for {dtype}, only for torch.float32"
        if not is_dense(weight):
            return "it has no kernel for weights with gaps in memory"
        return None

    def first_trial(self, launch: Launch) -> Tensor:
        partials = array("d", bytes(8 * _n_chunks(launch)))
        arguments = _arguments(launch)
        slope = _kernels().cpu_first_trial(*arguments.numbers, partials.buffer_info()[0])
        launch.moved = True
        torch.autograd.graph.increment_version(arguments.weights)
        return torch.tensor(slope, dtype=torch.float64)

    def next_trial(self, launch: Launch) -> None:
        arguments = _arguments(launch)
        _kernels().cpu_next_trial(*arguments.numbers)
        torch.autograd.graph.increment_version(arguments.weights)

    def adam_step(self, launch: Launch) -> None:
        arguments = _arguments(launch)
        _kernels().cpu_adam_step(*arguments.numbers)
        torch.autograd.graph.increment_version(arguments.weights)


def _kernels() -> ModuleType:
    assert _module is not None
    return _module


def _n_chunks(launch: Launch) -> int:
    return len(launch.raw_chunks) // CHUNK_FIELDS


class _arguments:
    """What every native kernel is called with; keeps the arrays alive while it runs."""

    def __init__(self, launch: Launch) -> None:
        # array("f") rounds each float64 scalar once
        self.classes = array("f", [scalar for c in launch.classes for scalar in c])
        self.numbers = (
            launch.raw_rows.buffer_info()[0],
            launch.raw_chunks.buffer_info()[0],
            _n_chunks(launch),
            self.classes.buffer_info()[0],
            0 if launch.saved is None else launch.saved.data_ptr(),
            torch.get_num_threads(),
        )
        # autograd does not see writes through addresses
        self.weights = [row.weight for row in launch.rows if row.gradient is not None]
