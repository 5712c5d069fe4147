"""The machine code of the CUDA C++ kernels, read without a GPU; `tests/ptx/` runs their PTX."""

from __future__ import annotations

import re
import subprocess

import pytest
from accesses import MOMENTS, accesses
from gpu_code import cuobjdump, kernel_name

from salsa_fused.kernels.backends import cuda as native_cuda

# -- machine code -----------------------------------------------------------------------------


needs_module = pytest.mark.skipif(
    native_cuda.module is None, reason="the CUDA kernels are not built (no nvcc)"
)
needs_cuobjdump = pytest.mark.skipif(cuobjdump() is None, reason="there is no cuobjdump")


def dump(*options):
    command = [cuobjdump(), *options, native_cuda.module.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def by_kernel(text):
    """The part of a dump that belongs to each (architecture, kernel, direction, dtype)."""
    found = {}
    for part in text.split("arch = sm_")[1:]:
        architecture = int(re.match(r"\d+", part)[0])
        for function in re.split(r"Function ?:? ", part)[1:]:
            name = function.split()[0]
            if "_kernel" in name:
                found[(architecture, *kernel_name(name))] = function
    return found


BUILT_FOR = getattr(native_cuda.module, "architectures", "").split(",")


@needs_module
@needs_cuobjdump
@pytest.mark.parametrize(
    "name", [pytest.param(a, marks=[] if a == "8.6" else [pytest.mark.slow]) for a in BUILT_FOR]
)
def test_accesses_and_spills(name):
    wanted = name.replace(".", "")
    code = by_kernel(dump("-sass", "-arch", f"sm_{wanted}"))
    assert {architecture for architecture, *_ in code} == {int(wanted)}
    assert len(code) == 4 * (4 * len(MOMENTS) + 1) + 1
    for (architecture, *key), text in code.items():
        label = f"{key} sm_{architecture}"
        loads, stores = accesses(*key)
        found = len(re.findall(r"\bLDG\.E\.128", text)), len(re.findall(r"\bSTG\.E\.128", text))
        # a loop that the compiler unrolls has them several times
        assert found[0] >= loads, label
        assert key[-1] == "mixed" or found[0] * stores == found[1] * loads, label
        assert not re.search(r"\b(?:LDL|STL)\b", text), label  # nothing spills
        assert not re.search(r"\bLD\.E|\bST\.E", text), label  # nor asks where an address lies


@needs_module
@needs_cuobjdump
def test_registers():
    """At most 64: four blocks of 256 threads on every multiprocessor; three of what is mixed."""
    usage = by_kernel(dump("-res-usage"))
    assert usage
    for key, text in usage.items():
        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
        assert int(registers) <= (80 if "mixed" in key else 64) and int(stack) == 0, key


@needs_module
@needs_cuobjdump
def test_rounding():
    ptx = dump("-ptx")
    assert "sqrt.rn.f32" in ptx and "div.rn.f32" in ptx
    assert not re.search(r"\b(?:fma|mad)\.rn[.\w]*\.f32", ptx)
    for kernel in ptx.split(".entry")[1:]:  # a fused square of fp32 is exact in fp64
        assert ("fma.rn.f64" in kernel) == ("norms_kernel" in kernel.split("(")[0])
    assert not re.search(r"\b(?:sqrt|div|rsqrt|rcp)\.(?:approx|full)", ptx)
    assert ".ftz" not in ptx
