"""What the Triton kernels compile to, read without a GPU.

Not collected with the rest: a process that interprets Triton cannot compile, and the other way
round.  `test_triton.py` runs this file in a process of its own.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from functools import cache
from pathlib import Path

import gpu_code as page
import pytest
from accesses import MOMENTS, accesses
from gpu_code import ARCHITECTURES, KERNELS, TYPES, compiled, cuobjdump

from salsa_fused.kernels.backends import cuda, triton_kernels

pytestmark = pytest.mark.skipif(cuobjdump() is None, reason="there is no cuobjdump")

HERE = 90  # what every run looks at, of the kernels that every step takes; the rest is slow
SEEN_TO = (86, 120)  # what is not Adam's; there bf16 stands for fp16, too
on_every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)

# (kernel, direction, keywords)
CASES = [
    *[
        (kernel, direction, {})
        for kernel in (*KERNELS, "norms")
        for direction in (*MOMENTS, "lamb")
    ],
    *[("step", direction, {"saved": False}) for direction in MOMENTS],
    *[("step", direction, {"saved": False, "skip": True}) for direction in MOMENTS],
    ("alignment", "sgd", {}),
]
OFTEN = [(kernel, "adam", {}) for kernel in KERNELS]


@cache
def of(kernel, dtype, architecture, **keywords):
    return compiled(kernel, dtype, architecture, **keywords)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("kernel", "direction", "keywords"), OFTEN)
def test_what_every_step_takes(kernel, direction, keywords, dtype):
    assert_fast(kernel, direction, keywords, dtype, HERE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "direction", "keywords", "dtype", "architecture"),
    [
        (*case, dtype, architecture)
        for case in CASES
        for dtype in (TYPES if case in OFTEN else ("fp32", "bf16"))
        for architecture in (ARCHITECTURES if case in OFTEN else SEEN_TO)
    ],
)
def test_accesses_spills_and_rounding(kernel, direction, keywords, dtype, architecture):
    assert_fast(kernel, direction, keywords, dtype, architecture)


def assert_fast(kernel, direction, keywords, dtype, architecture):
    """Wide accesses, no registers spilled, few enough of them, and correct rounding."""
    made = of(kernel, dtype, architecture, direction=direction, **keywords)
    arithmetic = "adam" if direction == "lamb" else direction
    loads, stores = accesses(kernel, arithmetic, dtype)
    # an unrolled loop has them several times
    assert made.vector_loads >= loads and made.vector_loads * stores == made.vector_stores * loads
    if arithmetic in ("adam", "ademamix"):  # no loop of which is unrolled
        assert made.vector_loads == loads
        assert made.ptx_count("sqrt.rn.f32") > 0 and made.ptx_count("div.rn.f32") > 0
    assert made.spills <= (2 if architecture == 120 else 0)
    # four blocks of 256 threads on every multiprocessor; three where a thread holds 8 elements of
    # three moments, and in some steps on an RTX 50, whose limit is six
    three = (kernel, direction) == ("step", "ademamix") and dtype != "fp32"
    three |= kernel == "step" and architecture == 120
    assert made.registers <= (80 if three else 64)
    assert_rounds(made)


def assert_rounds(made):
    """Rounded correctly, without fusion, and subnormal numbers count."""
    assert not re.findall(r"\b(?:fma|mad)\.rn[.\w]*f(?:32|64)", made.ptx)
    assert not re.findall(r"\b(?:sqrt|div|rsqrt|rcp)\.(?:approx|full)", made.ptx)
    assert ".ftz" not in made.ptx


@pytest.mark.slow
@on_every_architecture
def test_the_ratios_of_lamb(architecture):
    made = of("trust_ratios", "fp32", architecture, direction="lamb")
    assert made.spills == 0
    assert made.ptx_count("sqrt.rn.f64") == 2 and made.ptx_count("div.rn.f64") == 1
    assert_rounds(made)


def test_the_reader_notices_fusion():
    assert "fma.rn" in compiled("step", "fp32", 90, fusion=True).ptx


POINTER = "pointer = tensor.to(tl.pointer_type(DTYPE)) + start\n    if UNIT {} {}:"
HINTS = {
    "pointers": (POINTER.format(">", 1), POINTER.format("<", 0)),
    "bounds in vectors": (".to(tl.int32) * UNIT", ".to(tl.int32)"),
}


@pytest.mark.parametrize("hint", HINTS)
def test_accesses_narrow_without_a_hint(hint, tmp_path):
    """The counts above are the hints' doing."""
    source = Path(triton_kernels.__file__).read_text()
    assert source.count(HINTS[hint][0]) == 1
    source = source.replace(*HINTS[hint]).replace(
        "from .. import", "from salsa_fused.kernels import"
    )
    source = source.replace("from .triton", "from salsa_fused.kernels.backends.triton")
    path = tmp_path / "changed.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("changed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = compiled("first_trial", "fp32", 90, kernels=module)
    loads, stores = accesses("first_trial", "adam", "fp32")
    assert made.vector_loads + made.vector_stores < loads + stores


@pytest.mark.slow
def test_the_page_shows_what_is_compiled():
    import triton

    if shutil.which("nvcc") is None or cuda.module is None:
        pytest.skip("needs nvcc and the CUDA C++ kernels")
    text = page.PAGE.read_text(encoding="utf-8")
    shown = text.partition(page.BEGIN)[2].partition(page.END)[0].strip()
    if f"Triton {triton.__version__}, nvcc {page.nvcc_version()}." not in shown:
        pytest.skip("the page shows other versions of the compilers")
    assert shown == page.table()
