"""The Triton backend: its kernels in processes of their own, and when it is not there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from salsa_fused.kernels import backends
from salsa_fused.kernels.backends import cuda as cuda_backend
from salsa_fused.kernels.backends import triton as triton_backend

HERE = Path(__file__).parent

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def in_a_process(file, *options, **environment):
    """Run a file of tests in a process of its own.

    Returns: what it printed.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)]
    command += options
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        command,
        cwd=HERE.parent.parent,
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@needs_triton
def test_interpreted():
    """triton_interpreted.py: under TRITON_INTERPRET=1 they serve, bit for bit the C++ kernels."""
    pytest.importorskip("salsa_fused._native", reason="the C++ kernels are not built")
    assert " passed" in in_a_process("triton_interpreted.py", TRITON_INTERPRET="1")


@pytest.mark.slow
@needs_triton
def test_compiled():
    """triton_compiled.py: wide accesses, no spills, correct rounding of what every step takes."""
    in_a_process("triton_compiled.py", "-m", "not slow")


@pytest.mark.slow
@needs_triton
def test_compiled_for_every_architecture():
    """triton_compiled.py: all kernels, for all GPUs, and the table of bench/KERNELS.md."""
    in_a_process("triton_compiled.py", "-m", "slow")


# -- where Triton is not there, or cannot launch ----------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A weight on a GPU that this machine need not have, and nobody warned yet."""
    monkeypatch.setattr(backends, "_warned_of", set())
    with FakeTensorMode():
        return torch.empty(3, device="cuda")


def test_without_triton_the_reference_serves_and_says_so_once(gpu, monkeypatch):
    monkeypatch.setattr(triton_backend, "missing", lambda: "Triton is not installed")
    with pytest.warns(UserWarning, match="without its Triton kernels.*Triton is not installed"):
        assert backends.choose_backend(gpu, gpu.dtype).name == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.choose_backend(gpu, gpu.dtype).name == "reference"
    with pytest.raises(RuntimeError, match=r"'triton' was asked for.*Triton is not installed"):
        backends.choose_backend(gpu, gpu.dtype, backends.forced_backends("triton"))


def test_where_triton_cannot_launch_the_reference_serves(gpu, monkeypatch):
    """As without a C compiler, which Triton needs when it runs."""

    class Unlaunchable:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton_backend, "missing", lambda: None)
    kernels = SimpleNamespace(probe=Unlaunchable())
    monkeypatch.setattr(triton_backend, "_kernels", lambda: kernels)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch, "empty", lambda *args, **keywords: None)
    triton_backend.launch_failure.cache_clear()
    with pytest.warns(UserWarning, match="cannot launch.*Failed to find C compiler"):
        assert backends.choose_backend(gpu, gpu.dtype).name == "reference"
    triton_backend.launch_failure.cache_clear()


def test_what_failed_on_the_device_before_is_not_remembered_as_tritons(gpu, monkeypatch):
    class Failing:
        def __getitem__(self, grid):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(triton_backend, "_kernels", lambda: SimpleNamespace(probe=Failing()))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch, "empty", lambda *args, **keywords: None)
    triton_backend.launch_failure.cache_clear()
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        triton_backend.launch_failure(gpu.device)
    monkeypatch.undo()
    triton_backend.launch_failure.cache_clear()


def test_triton_serves_a_gpu(gpu, monkeypatch):
    monkeypatch.setattr(triton_backend, "missing", lambda: None)
    monkeypatch.setattr(triton_backend, "launch_failure", lambda device: None)
    assert backends.choose_backend(gpu, gpu.dtype).name == "triton"
    assert backends.choose_backend(gpu, torch.float64).name == "reference"  # of other gradients
    with pytest.raises(RuntimeError, match="no kernel for device 'cpu'"):
        backends.choose_backend(torch.zeros(1), torch.float32, backends.forced_backends("triton"))


def test_importing_the_package_imports_no_triton():
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import salsa_fused; "
        "sys.exit('triton' in sys.modules and not before)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_triton_the_cuda_kernels_serve(gpu, monkeypatch):
    monkeypatch.setattr(triton_backend, "missing", lambda: "Triton is not installed")
    monkeypatch.setattr(cuda_backend, "missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    probes = []
    module = SimpleNamespace(architectures="8.0,8.6,9.0", probe=probes.append)
    monkeypatch.setattr(cuda_backend, "module", module)
    cuda_backend.launch_failure.cache_clear()
    with pytest.warns(UserWarning, match=r"its CUDA C\+\+ kernels serve: Triton is not installed"):
        assert isinstance(backends.choose_backend(gpu, gpu.dtype), cuda_backend.CudaBackend)
    native = backends.forced_backends("native")
    chosen = backends.choose_backend(gpu, gpu.dtype, native)
    assert isinstance(chosen, cuda_backend.CudaBackend)
    assert probes == [0]  # once for the device

    def fail(device):
        raise RuntimeError("CUDA: cudaSetDevice: CUDA driver version is insufficient")

    module.probe = fail
    cuda_backend.launch_failure.cache_clear()
    assert backends.choose_backend(gpu, gpu.dtype).name == "reference"
    with pytest.raises(RuntimeError, match="driver version is insufficient"):
        backends.choose_backend(gpu, gpu.dtype, native)
    cuda_backend.launch_failure.cache_clear()
