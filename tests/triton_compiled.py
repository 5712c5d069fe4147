"""What the Triton kernels compile to, read without a GPU.

Not collected with the rest: a process that interprets Triton cannot compile, and the other way
round.  `test_triton.py` runs this file in a process of its own.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from bench import compiled as page
from bench.compiled import ACCESSES, ARCHITECTURES, KERNELS, compiled, cuobjdump
from salsa_fused.kernels import triton_kernels

pytestmark = pytest.mark.skipif(cuobjdump() is None, reason="there is no cuobjdump")

CASES = [
    *[(kernel, {}) for kernel in KERNELS],
    ("adam_step", {"saved": False}),
    ("adam_step", {"saved": False, "skip": True}),
]
SGD_CASES = [
    ("first_trial", {"direction": "sgd"}),
    ("next_trial", {"direction": "sgd"}),
    *[("sgd_step", {"saved": saved, "skip": not saved}) for saved in (True, False)],
]
SGD_ACCESSES = {"first_trial": (2, 2), "next_trial": (2, 1), "sgd_step": (2, 1)}  # of any dtype


@cache
def of(kernel, dtype, architecture, **keywords):
    return compiled(kernel, dtype, architecture, **keywords)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("kernel", "keywords"), CASES)
def test_accesses_and_spills(kernel, keywords, dtype, architecture):
    made = of(kernel, dtype, architecture, **keywords)
    expected = ACCESSES[kernel, dtype if dtype == "fp32" else "16"]
    assert (made.vector_loads, made.vector_stores) == expected
    assert made.spills == 0
    assert made.registers <= 64  # four blocks of 256 threads on every multiprocessor


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("kernel", "keywords"), SGD_CASES)
def test_accesses_spills_and_rounding_of_sgd(kernel, keywords, dtype, architecture):
    made = of(kernel, dtype, architecture, **keywords)
    loads, stores = SGD_ACCESSES[kernel]
    # an unrolled loop has them several times
    assert made.vector_loads >= loads and made.vector_loads * stores == made.vector_stores * loads
    assert made.spills == 0
    assert made.registers <= 64
    assert not re.findall(r"\b(?:fma|mad)\.rn\.f(?:32|64)\b", made.ptx)
    assert ".ftz" not in made.ptx


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kernel", [*KERNELS, "norms"])
def test_accesses_spills_and_rounding_of_lamb(kernel, dtype, architecture):
    made = of(kernel, dtype, architecture, direction="lamb")
    sixteen = dtype != "fp32"
    loads, stores = ACCESSES.get((kernel, "16" if sixteen else "fp32"), (6 if sixteen else 4, 0))
    assert (made.vector_loads, made.vector_stores) == (loads, stores)
    assert made.spills == 0
    assert made.registers <= 64
    assert not re.findall(r"\b(?:fma|mad)\.rn\.f(?:32|64)\b", made.ptx)
    assert ".ftz" not in made.ptx


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_ratios_of_lamb(architecture):
    made = of("trust_ratios", "fp32", architecture, direction="lamb")
    assert made.spills == 0
    assert made.ptx_count("sqrt.rn.f64") == 2 and made.ptx_count("div.rn.f64") == 1
    assert not re.findall(r"\b(?:fma|mad)\.rn\.f(?:32|64)\b", made.ptx)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_accesses_spills_and_rounding_of_alignment(dtype, architecture):
    made = of("alignment", dtype, architecture)
    # three, once or in every turn of an unrolled loop
    assert made.vector_loads > 0 and made.vector_loads % 3 == 0 and made.vector_stores == 0
    assert made.spills == 0
    assert made.registers <= 64
    assert not re.findall(r"\b(?:fma|mad)\.rn\.f(?:32|64)\b", made.ptx)
    assert ".ftz" not in made.ptx


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "keywords"), CASES)
def test_rounding(kernel, keywords, architecture):
    made = of(kernel, "fp32", architecture, **keywords)
    assert made.ptx_count("sqrt.rn.f32") > 0 and made.ptx_count("div.rn.f32") > 0
    assert not re.findall(r"\b(?:fma|mad)\.rn\.f(?:32|64)\b", made.ptx)
    assert not re.findall(r"\b(?:sqrt|div|rsqrt|rcp)\.(?:approx|full)", made.ptx)
    assert ".ftz" not in made.ptx  # subnormal numbers count


def test_the_reader_notices_fusion():
    assert "fma.rn" in compiled("adam_step", "fp32", 90, fusion=True).ptx


HINTS = {
    "weight, gradient and moments": (
        "pointer = address.to(tl.pointer_type(DTYPE)) + start\n    if UNIT > 1:",
        "pointer = address.to(tl.pointer_type(DTYPE)) + start\n    if UNIT < 0:",
    ),
    "saved": (
        "pointer = saved + (tl.load(row + SAVED_AT) + start)\n    if UNIT > 1:",
        "pointer = saved + (tl.load(row + SAVED_AT) + start)\n    if UNIT < 0:",
    ),
    "bounds in vectors": (".to(tl.int32) * UNIT", ".to(tl.int32)"),
}


@pytest.mark.parametrize("hint", HINTS)
def test_accesses_narrow_without_a_hint(hint, tmp_path):
    """The counts above are the hints' doing."""
    source = Path(triton_kernels.__file__).read_text()
    assert source.count(HINTS[hint][0]) == 1
    source = source.replace(*HINTS[hint]).replace("from .", "from salsa_fused.kernels.")
    source = source.replace("from salsa_fused.kernels. import", "from salsa_fused.kernels import")
    path = tmp_path / "changed.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("changed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = compiled("first_trial", "fp32", 90, kernels=module)
    loads, stores = ACCESSES["first_trial", "fp32"]
    assert made.vector_loads + made.vector_stores < loads + stores


def test_the_page_shows_what_is_compiled():
    import triton

    text = page.PAGE.read_text(encoding="utf-8")
    shown = text.partition(page.BEGIN)[2].partition(page.END)[0].strip()
    if f"Triton {triton.__version__}." not in shown:
        pytest.skip("the page shows another version of Triton")
    assert shown == page.table()
