"""The CUDA C++ kernels without a GPU: their machine code, their indexing, their arithmetic."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from accesses import MOMENTS, accesses
from gpu_code import cuobjdump
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import PLACES, random_bits

from salsa_fused.kernels.backends import cuda as native_cuda

CSRC = Path(__file__).parent.parent.parent / "csrc"


# -- machine code -----------------------------------------------------------------------------


needs_module = pytest.mark.skipif(
    native_cuda.module is None, reason="the CUDA kernels are not built (no nvcc)"
)
needs_cuobjdump = pytest.mark.skipif(cuobjdump() is None, reason="there is no cuobjdump")


def dump(option):
    command = [cuobjdump(), option, native_cuda.module.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def kernel_name(mangled):
    names = "first_trial|next_trial|step|norms|trust_ratios|alignment"
    kernel = re.search(rf"\d({names})_kernel", mangled)[1]
    direction = re.search(rf"\d({'|'.join(MOMENTS)})", mangled, re.IGNORECASE)
    dtype = "bf16" if "bf16" in mangled else "fp16" if "fp16" in mangled else "fp32"
    return kernel, direction[1].lower() if direction else "sgd", dtype


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


@needs_module
@needs_cuobjdump
def test_accesses_and_spills():
    code = by_kernel(dump("-sass"))
    wanted = [int(a.replace(".", "")) for a in native_cuda.module.architectures.split(",")]
    assert sorted({architecture for architecture, *_ in code}) == sorted(wanted)
    assert len(code) == (3 * (4 * len(MOMENTS) + 1) + 1) * len(wanted)
    for (architecture, *key), text in code.items():
        label = f"{key} sm_{architecture}"
        loads, stores = accesses(*key)
        found = len(re.findall(r"\bLDG\.E\.128", text)), len(re.findall(r"\bSTG\.E\.128", text))
        # a loop that the compiler unrolls has them several times
        assert found[0] >= loads and found[0] * stores == found[1] * loads, label
        assert not re.search(r"\b(?:LDL|STL)\b", text), label  # nothing spills
        assert not re.search(r"\bLD\.E|\bST\.E", text), label  # nor asks where an address lies


@needs_module
@needs_cuobjdump
def test_registers():
    """At most 64: four blocks of 256 threads on every multiprocessor."""
    usage = by_kernel(dump("-res-usage"))
    assert usage
    for key, text in usage.items():
        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
        assert int(registers) <= 64 and int(stack) == 0, key


@needs_module
@needs_cuobjdump
def test_rounding():
    ptx = dump("-ptx")
    assert "sqrt.rn.f32" in ptx and "div.rn.f32" in ptx
    assert not re.search(r"\b(?:fma|mad)\.rn\.f(?:32|64)\b", ptx)
    assert not re.search(r"\b(?:sqrt|div|rsqrt|rcp)\.(?:approx|full)", ptx)
    assert ".ftz" not in ptx


# -- indexing and arithmetic, as the GPU has them, on the host ------------------------------------

SHIM = r"""
#include "storage.h"
#include "sums.h"
using namespace salsa;
extern "C" void spans(const std::int64_t* chunks, std::int64_t n, std::int64_t n_vector,
                      std::int64_t length, std::int64_t* out) {
    for (std::int64_t k = 0; k < n; ++k) {
        const Span s = span_of(reinterpret_cast<const Chunk*>(chunks), k, n_vector, length);
        out[4 * k] = s.row;
        out[4 * k + 1] = s.start;
        out[4 * k + 2] = s.size;
        out[4 * k + 3] = s.vectors;
    }
}
template <class D, class T>
void go(std::int64_t n, T* w, const T* g, float* moments, T* trial, const Scalars& c) {
    for (std::int64_t i = 0; i < n; ++i) {
        const float weight = load(w[i]), gradient = load(g[i]);
        float m[kMostMoments];
        for (int k = 0; k < D::kMoments; ++k) m[k] = moments[k * n + i];
        trial[i] = Stored<T>::from(moved(weight, D::tried(gradient, m, c), c));
        w[i] = Stored<T>::from(moved(weight, decayed(D::update(gradient, m, c), weight, c), c));
        for (int k = 0; k < D::kMoments; ++k) moments[k * n + i] = m[k];
    }
}
extern "C" void elements(int direction, int dtype, std::int64_t n, void* w, void* g,
                         float* moments, void* trial, const Scalars* c) {
    by_direction(direction, [&](auto d) {
        by_dtype(Dtype(dtype), [&](auto x) {
            using T = decltype(x);
            go<decltype(d)>(n, (T*)w, (const T*)g, moments, (T*)trial, *c);
        });
    });
}
"""


def shim(folder, source, *compiler):
    (folder / source).write_text(SHIM)
    target = folder / f"{source}.so"
    command = [
        *compiler,
        "-std=c++17",
        "-O3",
        "-shared",
        f"-I{CSRC}",
        folder / source,
        "-o",
        target,
    ]
    subprocess.run(list(map(str, command)), check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture(scope="module")
def cxx(tmp_path_factory):
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("cxx")
    return shim(folder, "shim.cpp", "c++", "-fPIC", "-ffp-contract=off")


@pytest.fixture(scope="module")
def nvcc(tmp_path_factory):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    folder = tmp_path_factory.mktemp("nvcc")
    flags = ["-fmad=false", "-Xcompiler=-fPIC,-ffp-contract=off"]
    return shim(folder, "shim.cu", "nvcc", *flags)


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


@given(
    rows=st.lists(st.tuples(st.integers(1, 100_000), st.booleans()), min_size=1, max_size=8),
    itemsize=st.sampled_from([2, 4]),
)
def test_spans_cover_every_element_once(cxx, rows, itemsize):
    """From Python's chunk list through C++ to elements."""
    from salsa_fused.kernels.chunks import cut

    backend = native_cuda.CudaBackend()
    sizes, aligned = zip(*rows)
    found = cut(sizes, aligned, backend.vector_bytes // itemsize, backend.chunk_size)
    chunks = np.array(found.raw, dtype=np.int64)
    n = len(chunks) // 3
    out = np.zeros(4 * n, dtype=np.int64)
    length = backend.vector_bytes // itemsize
    cxx.spans(
        pointer(chunks),
        ctypes.c_int64(n),
        ctypes.c_int64(found.n_vector),
        ctypes.c_int64(length),
        pointer(out),
    )
    seen = [np.zeros(size, dtype=int) for size, _ in rows]
    for row, start, size, vectors in out.reshape(n, 4):
        assert 0 < size <= backend.chunk_size and start + size <= rows[row][0]
        seen[row][start : start + size] += 1
        if vectors:
            assert rows[row][1] and start % length == 0 and size % length == 0
    assert all((times == 1).all() for times in seen)


@pytest.mark.parametrize("direction", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("dtype", [0, 1, 2], ids=["fp32", "bf16", "fp16"])
def test_nvcc_compiles_the_headers_to_the_same_bits(dtype, direction, cxx, nvcc):
    n, results = 10_007, []
    scalars = [0.9, 0.1, 0.999, 0.001, 5, 9, 1e-8, 0.01, 0.1, 1, 0.9999, 0.0001, 8]
    scalars = np.array(scalars, dtype=np.float32)
    for library in (cxx, nvcc):
        w, g = (random_bits(n, dtype, seed) for seed in (1, 2))
        moments = np.abs(random_bits(3 * n, 0, 3))
        arrays = (w, g, moments, np.zeros_like(w), scalars)
        library.elements(direction, dtype, ctypes.c_int64(n), *map(pointer, arrays))
        results.append([array.tobytes() for array in arrays])
    assert results[0] == results[1]
