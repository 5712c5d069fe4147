"""Triton's own way from a call to a launch, with a driver that records launches and runs nothing.

Not collected with the rest: `test_triton.py` runs this file in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels, backends
from salsa_fused.kernels.backends.triton import TritonBackend

launched: list[str] = []
compiled: list[str] = []


class Utils:
    def load_binary(self, name, kernel, shared, device):
        compiled.append(name)
        return 1, 2, 40, 0, 1024

    def get_device_properties(self, device):
        sizes = {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536}
        return {**sizes, "warpSize": 32, "mem_clock_rate": 1, "mem_bus_width": 1}

    def unload_module(self, *arguments):
        pass


class Launcher:
    def __init__(self, source, metadata):
        self.name = source.fn.__name__

    def __call__(self, *arguments, **keywords):
        launched.append(self.name)


class Recorder:
    """What Triton asks of a driver; the tensors are on the CPU."""

    utils = Utils()
    launcher_cls = Launcher

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_device_interface(self):
        return torch.cuda

    def get_active_torch_device(self):
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind):
        return kind


class OnTheCpu(TritonBackend):
    def refusal(self, weight, gradient_dtype):
        return None


@pytest.fixture(autouse=True)
def recording(monkeypatch):
    driver.set_active(Recorder())
    monkeypatch.setattr(backends, "BACKENDS", [OnTheCpu(), *backends.BACKENDS[1:]])
    launched.clear()
    compiled.clear()


def parameters(sizes, dtype=torch.float32):
    weights = [nn.Parameter(torch.ones(size, dtype=dtype)) for size in sizes]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    return weights


def test_one_launch_for_any_model():
    optimizer = FusedSaLSa(parameters([100, 3] * 100), backend="triton", search_period=None)
    for _ in range(3):
        optimizer.step()
    assert launched == ["step"] * 3


def test_the_launches_of_a_search():
    weights = parameters([100, 3, 7])
    kernels = Kernels("triton")
    groups = FusedSaLSa(weights).param_groups
    kernels.refresh(groups, {})
    kernels.first_trial(groups, 1.0)
    kernels.next_trial(groups, 0.5)
    kernels.final_write(groups, 0.25)
    assert launched == ["first_trial", "next_trial", "step"]


def test_one_launch_for_an_alignment():
    weights = parameters([100, 3, 7])
    kernels = Kernels("triton")
    state = {weight: {"window_start": weight.detach().clone()} for weight in weights}
    for _ in range(2):
        kernels.refresh(FusedSaLSa(weights).param_groups, state)
        kernels.alignment()
    assert launched == ["alignment"] * 2 and compiled.count("alignment") <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_compilation_for_every_variant(dtype):
    """Neither counts nor addresses are compiled into a kernel."""
    for sizes in ([16], [100, 3] * 10, [1], [5] * 3, [1 << 15]):
        weights = parameters(sizes, dtype)
        optimizer = FusedSaLSa(weights, backend="triton", search_period=None)
        for skip in (None, torch.zeros(())):
            for _ in range(2):
                kernels, groups = optimizer._kernels, optimizer.param_groups
                kernels.refresh(groups, optimizer.state)
                kernels.final_write(groups, 1.0, skip)
                kernels.commit(optimizer.state)
                kernels.release()
    assert len(compiled) <= 2  # with a flag and without, where no test before had them compiled
    assert launched == ["step"] * 20


def test_all_is_compiled_before_anything_is_launched(monkeypatch):
    weights = [*parameters([5]), *parameters([5], torch.bfloat16)]
    optimizer = FusedSaLSa(weights, backend="triton", search_period=None)
    seen = []
    backend = backends.BACKENDS[0]

    def spy(work):
        write = TritonBackend.step(backend, work)
        seen.append(list(launched))
        return write

    monkeypatch.setattr(backend, "step", spy)
    optimizer.step()
    assert seen == [[], []] and launched == ["step"] * 2
