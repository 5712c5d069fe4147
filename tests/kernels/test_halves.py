"""csrc/halves.h: what the CPU's instructions make of fp16 has the bits of the plain code."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

CSRC = Path(__file__).parent.parent.parent / "csrc"
SHIM = """
#include "halves.h"
using namespace salsa;
extern "C" int variants(cpu::Halves* found) {
    int n = 0;
    found[n++] = {cpu::widen_plain, cpu::narrow_plain};
    found[n++] = cpu::kHalves;
#if defined(SALSA_X86_HALVES)
    if (__builtin_cpu_supports("avx2")) found[n++] = {cpu::widen_f16c, cpu::narrow_f16c};
    if (__builtin_cpu_supports("avx512f")) found[n++] = {cpu::widen_avx512, cpu::narrow_avx512};
#endif
    return n;
}
extern "C" void widen(int which, const fp16* from, float* to, int n) {
    cpu::Halves all[4];
    variants(all);
    all[which].widen(from, to, n);
}
extern "C" void narrow(int which, const float* from, fp16* to, int n) {
    cpu::Halves all[4];
    variants(all);
    all[which].narrow(from, to, n);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("halves")
    (folder / "shim.cpp").write_text(SHIM)
    command = ["c++", "-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", f"-I{CSRC}"]
    command += [str(folder / "shim.cpp"), "-o", str(folder / "shim.so")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "shim.so"))


def each(library, name, given, kind):
    """What every variant makes of these numbers."""
    found = []
    for which in range(library.variants(ctypes.create_string_buffer(64))):
        to = np.zeros(len(given), kind)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (given, to))
        getattr(library, name)(which, *pointers, len(given))
        found.append(to)
    return found


def test_every_half_becomes_the_same_number(library):
    halves = np.arange(2**16, dtype=np.uint16)
    plain, *others = each(library, "widen", halves, np.float32)
    assert others
    expected = halves.view(np.float16).astype(np.float32)
    assert np.array_equal(plain, expected, equal_nan=True)
    for other in others:  # of signalling ones the instruction makes quiet ones
        assert np.array_equal(other, plain, equal_nan=True)
        same = ~np.isnan(plain)
        assert np.array_equal(other[same].view("u4"), plain[same].view("u4"))


@pytest.mark.parametrize("size", [1, 7, 8, 15, 16, 17, 1_000_003])
def test_every_number_becomes_the_same_half(library, size):
    random = np.random.default_rng(size)
    bits = random.integers(0, 2**32, size, dtype=np.uint32)
    # half of them where fp16 has numbers, and what lies midway between two
    near = random.standard_normal(size).astype(np.float16).astype(np.float32).view("u4") + 0x1000
    bits[::2] = near[::2]
    plain, *others = each(library, "narrow", bits.view(np.float32), np.uint16)
    with np.errstate(over="ignore"):
        expected = bits.view(np.float32).astype(np.float16)
    numbers = ~np.isnan(expected)
    assert np.array_equal(plain[numbers], expected.view("u2")[numbers])
    for other in others:
        assert np.array_equal(other, plain)  # what is not a number, too
