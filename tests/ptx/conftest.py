"""The backends whose kernels are translated PTX."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from salsa_fused.kernels import backends
from salsa_fused.kernels.backends import triton as triton_backend
from salsa_fused.kernels.backends.cpu import CpuBackend

from .library import Threads, compiler, threads_in

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
HERE = 86  # that every run looks at; the others are slow
EVERY = [
    pytest.param(
        (name, number), id=f"{name}-{number}", marks=[pytest.mark.slow] if number != HERE else []
    )
    for name in ("triton", "nvcc")
    for number in ARCHITECTURES
]
BOTH = [pytest.param((name, HERE), id=name) for name in ("triton", "nvcc")]
ONE = [BOTH[0], pytest.param(*BOTH[1].values, id="nvcc", marks=pytest.mark.slow)]


@pytest.fixture(scope="session")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Threads:
    """Where kernels are compiled; processes of the same run share what they made."""
    if shutil.which(compiler()) is None:
        pytest.skip("needs a C compiler")
    if (reason := CpuBackend().missing(None)) is not None:
        pytest.skip(f"they are compared with the C++ kernels: {reason}")
    base = tmp_path_factory.getbasetemp()
    return threads_in((base.parent if base.name.startswith("popen-") else base) / "ptx")


def reason_of_absence(name: str) -> str | None:
    """Return why a compiler for GPUs cannot serve here."""
    if name == "nvcc":
        return None if shutil.which("nvcc") and shutil.which("c++") else "needs nvcc and c++"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton"
    return "the process interprets Triton" if triton_backend.interpreted() else None


@contextmanager
def served(name: str, architecture: int, threads: Threads) -> Iterator[object]:
    """Within it a backend of this name serves CPU tensors; give Triton's driver, or the module."""
    if (reason := reason_of_absence(name)) is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        if name == "triton":
            from . import triton_driver as of_compiler

            context = of_compiler.driven(threads, architecture)
        else:
            from . import nvcc_module as of_compiler

            context = of_compiler.serving(of_compiler.build(threads, architecture))
        given = stack.enter_context(context)
        backends.BACKENDS.append(of_compiler.OnTheCpu())
        stack.callback(backends.BACKENDS.pop)
        yield given


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest, threads: Threads) -> Iterator[str]:
    """The name of a backend; its parameter is (name, architecture)."""
    name, architecture = request.param
    with served(name, architecture, threads):
        yield name
