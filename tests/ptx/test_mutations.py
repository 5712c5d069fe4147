"""Each of these changes of the kernels' source has to be noticed."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernel_cases import (
    FORMATS,
    GROUP,
    along,
    assert_same_run,
    make_state,
    make_weights,
    side_by_side,
)

from salsa_fused.kernels import backends
from salsa_fused.kernels.backends import triton as triton_backend
from salsa_fused.kernels.bucket import Bucket

from .conftest import HERE, served
from .instructions import UnknownInstructionError
from .library import PtxError, Threads
from .test_bits import CHUNK, assert_skips
from .test_far import moved

# what a test that turns red raises
NOTICED = (AssertionError, PtxError, UnknownInstructionError)


def sizes(direction="adam", dtype=torch.float32):
    def check(name, threads):
        def make():
            weights = make_weights([2047, 9, 600], dtype)
            return weights, None, make_state(weights)

        assert_same_run(along(direction, make), (name, "native"))

    return check


def neighbours(name, threads):
    assert_same_run(side_by_side, (name, "native"))


def stored_otherwise(name, threads):
    """With masters, and moments in bf16."""

    def make():
        weights = make_weights([2047, 9, CHUNK + 600], torch.bfloat16)
        return weights, None, make_state(weights)

    assert_same_run(make, (name, "native"), formats=FORMATS["all"])


def groups(name, threads):
    def make():
        weights, _, _ = side_by_side()
        parts = [{**GROUP, "weight_decay": 0.1, "params": weights[:3]}]
        parts.append({**GROUP, "lr": 0.3, "params": weights[3:]})
        return weights, parts, make_state(weights)

    assert_same_run(make, (name, "native"))


def skipped(name, threads):
    for flag, expected in ((0.0, False), (1.0, True), (math.nan, True)):
        assert_skips(name, flag, expected, "adam")


def orders(name, threads):
    for order in ("forward", "random"):
        with threads.in_order(order, 1):
            sizes()(name, threads)


def far(name, threads):
    served_backend = backends.BACKENDS[-1]
    step = type(served_backend).step
    served_backend.step = lambda work: step(served_backend, moved(work, 2**32 + 32, 4))
    try:
        sizes()(name, threads)
    finally:
        del served_backend.step


FILES = ("directions", "rounding", "kernels")  # of Triton, each after those that it imports
Change = tuple[str, str, str, Callable[[str, Threads], None]]  # file, text, other text, the check

TRITON: dict[str, Change] = {
    "fusion": ("", "", "", sizes()),
    "a wrong constant": (
        "directions",
        "return c[BETA1] * m + c[ONE_MINUS_BETA1] * g",
        "return c[BETA1] * m + c[ONE_MINUS_BETA2] * g",
        sizes(),
    ),
    "another order": (
        "directions",
        "(c[ONE_MINUS_BETA2] * g) * g",
        "c[ONE_MINUS_BETA2] * (g * g)",
        sizes(),
    ),
    "a root that is not rounded": ("directions", "tl.sqrt_rn(v)", "tl.sqrt(v)", sizes()),
    "a quotient that is not rounded": (
        "directions",
        "tl.div_rn(g, preconditioner(second_moment(m[0], g, c), c))",
        "g / preconditioner(second_moment(m[0], g, c), c)",
        sizes(),
    ),
    "a sign of 0": (
        "directions",
        "tl.where(x > 0.0, 1.0,",
        "tl.where(x >= 0.0, 1.0,",
        lambda name, threads: zero_gradients(name),
    ),
    "no decay": ("directions", "return u + c[WEIGHT_DECAY] * w", "return u", groups),
    "no mask": (
        "kernels",
        "store(w_at + i, after, mask, DTYPE)",
        "store(w_at + i, after, None, DTYPE)",
        neighbours,
    ),
    "a flag that is not a number": (
        "kernels",
        "tl.where(tl.load(skip) != 0.0, 0, size)",
        "tl.where(tl.load(skip) > 0.0, 0, size)",
        skipped,
    ),
    "a hint that does not hold": ("host", "", "", lambda name, threads: unaligned(name)),
    "32-bit offsets": (
        "kernels",
        "    start *= UNIT\n",
        "    start = (start * UNIT).to(tl.int32)\n",
        far,
    ),
    "scalars of another group": (
        "kernels",
        "at = scalars + tl.load(row + SCALARS_AT) * SCALAR_FIELDS",
        "at = scalars",
        groups,
    ),
    "trials from where the last one went": (
        "kernels",
        "rows, chunks, scalars, ratios, saved, None, None, None,\n        None, n_vector",
        "rows, chunks, scalars, ratios, None, None, None, None,\n        None, n_vector",
        sizes(),
    ),
    "nothing saved": (
        "kernels",
        "    tl.store(saved_at + i, stored, mask=mask)\n",
        "    tl.store(saved_at + i, stored * 0, mask=mask)\n",
        sizes(),
    ),
    "16 bits cut, not rounded": (
        "rounding",
        "tl.store(pointer, x.to(DTYPE), mask=mask)",
        'tl.store(pointer, x.to(DTYPE, fp_downcast_rounding="rtz"), mask=mask)',
        sizes(dtype=torch.bfloat16),
    ),
    "a slope without its factor": (
        "kernels", "if N_SUMS == 1 and scalars is not None:  # the", "if 0:  #", groups,
    ),
    "a missing barrier": ("ptx", "bar.sync \t0;", "", orders),
}  # fmt: skip

# the same for what is not stored as the defaults have it
OF_STORAGE = {
    "a moment rounded to nearest": (
        "rounding",
        "(x.to(tl.uint32, bitcast=True) + added)",
        "(x.to(tl.uint32, bitcast=True) + 0x8000)",
    ),
    "the bits of another moment": ("rounding", "return SHIFTS[k]", "return SHIFTS[1 - k]"),
    "another hash": ("rounding", "(x >> 16)) * FIRST", "(x >> 17)) * FIRST"),
    "bits of another parameter": ("rounding", "(number + 1)", "(number * 0 + 1)"),
    "bits of another chunk": ("kernels", "random_bits(key, start + i)", "random_bits(key, i)"),
    "masters that stay": ("kernels", "tl.store(master_at + i, after, mask=mask)", "pass"),
    "trials from the weights": (
        "kernels",
        "from_at = pointer_to(tl.load(row + MASTER_AT), start, tl.float32, UNIT)",
        "from_at = w_at",
    ),
}
TRITON |= {name: (*change, stored_otherwise) for name, change in OF_STORAGE.items()}


def zero_gradients(name):
    def make():
        weights = make_weights([600])
        weights[0].grad[::3] = 0.0
        return weights, None, make_state(weights)

    assert_same_run(along("lion", make), (name, "native"))


def unaligned(name):
    def make():
        (room,) = make_weights([6001])
        weight = room[1:]
        weight.grad = room.grad[1:]
        return [weight], None, {}

    assert_same_run(make, (name, "native"))


@pytest.fixture(scope="module")
def triton(threads):
    with served("triton", HERE, threads) as driver:
        yield driver


def module_of(path: Path, name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # Triton looks a kernel's module up
    specification.loader.exec_module(module)
    return module


@contextmanager
def changed(folder: Path, file: str, text: str, other: str, monkeypatch) -> Iterator[None]:
    """Within it the backend launches kernels with other text in one of their files."""
    places = {}
    here = Path(triton_backend.__file__).parent
    for name in FILES:
        source = (here / f"triton_{name}.py").read_text()
        if name == file:
            assert source.count(text) == 1, source.count(text)
            source = source.replace(text, other)
        source = source.replace("from ..", "from salsa_fused.kernels.").replace(
            "salsa_fused.kernels. import", "salsa_fused.kernels import"
        )
        source = source.replace("from .triton_", "from changed_")
        places[name] = folder / f"changed_{name}.py"
        places[name].write_text(source)
    try:
        *_, kernels = [module_of(places[name], f"changed_{name}") for name in FILES]
        monkeypatch.setattr(triton_backend, "_kernels", lambda: kernels)
        triton_backend._compiled.clear()
        triton_backend._constants.cache_clear()
        yield
    finally:
        monkeypatch.undo()
        triton_backend._compiled.clear()
        triton_backend._constants.cache_clear()
        for name in FILES:
            sys.modules.pop(f"changed_{name}", None)


def test_the_checks_pass_without_a_change(triton, threads, tmp_path, monkeypatch):
    checks = (neighbours, groups, skipped, orders, far, sizes(dtype=torch.bfloat16))
    with changed(tmp_path, "", "", "", monkeypatch):
        for check in checks:
            check("triton", threads)
        zero_gradients("triton")
        unaligned("triton")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in OF_STORAGE else n for n in TRITON]
)
def test_a_change_of_triton_kernels_is_noticed(name, triton, threads, tmp_path, monkeypatch):
    file, text, other, check = TRITON[name]
    if name == "fusion":
        options = {**triton_backend._options(), "enable_fp_fusion": True}
        monkeypatch.setattr(triton_backend, "_options", lambda: options)
    if file == "host":  # it says that all rows lie on 16 bytes
        monkeypatch.setattr(Bucket, "_find_aligned", lambda bucket: [True] * len(bucket.rows))
    if file == "ptx":
        translated = threads.kernel

        def without(ptx):
            first, found, rest = ptx.partition("bar.sync")
            return translated(first + rest.partition(";")[2] if found else ptx)

        monkeypatch.setattr(threads, "kernel", without)
    with changed(tmp_path, file, text, other, monkeypatch), pytest.raises(NOTICED):
        check("triton", threads)


# -- CUDA C++ ---------------------------------------------------------------------------------

CUDA: dict[str, Change] = {
    "fusion": ("", "", "-fmad=true", sizes()),
    "a missing barrier": (
        "cuda_kernels.cu",
        "    sums[threadIdx.x] = own;\n    __syncthreads();\n",
        "    sums[threadIdx.x] = own;\n",
        orders,
    ),
    "a barrier that some threads reach": (
        "cuda_kernels.cu",
        "sums[threadIdx.x] += sums[threadIdx.x + half];\n        __syncthreads();",
        "{ sums[threadIdx.x] += sums[threadIdx.x + half];\n        __syncthreads(); }",
        orders,
    ),
    "vectors where none may begin": (
        "rows.h", "const bool vectors = k < n_vector;", "const bool vectors = true;",
        lambda name, threads: unaligned(name),
    ),
    "32-bit offsets": (
        "rows.h",
        "return {chunk.row, chunk.start * unit,",
        "return {chunk.row, static_cast<int>(chunk.start * unit),",
        far,
    ),
    "a flag that is not a number": (
        "cuda_kernels.cu", "!(*launch.skip == 0.0f)", "*launch.skip > 0.0f", skipped,
    ),
    "masters that stay": (
        "cuda_mixed.h", "if (kMoves == Moves::step &&", "if (false &&", stored_otherwise,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CUDA)
def test_a_change_of_cuda_kernels_is_noticed(name, threads, tmp_path):
    file, text, other, check = CUDA[name]
    with served("nvcc", HERE, threads):
        from . import nvcc_module

        csrc = tmp_path / name.replace(" ", "_") / "csrc"
        shutil.copytree(nvcc_module.CSRC, csrc)
        if file:
            source = (csrc / file).read_text()
            assert source.count(text) == 1
            (csrc / file).write_text(source.replace(text, other))
        # one direction is enough, and a quarter of the time
        directions = (csrc / "directions.h").read_text()
        every = "X(Adam, 0) X(Sgd, 1) X(Lion, 3) X(AdEMAMix, 4)"
        assert directions.count(every) == 1
        (csrc / "directions.h").write_text(directions.replace(every, "X(Adam, 0)"))

        def build_and_check():
            module = nvcc_module.build(threads, HERE, csrc, *([] if file else [other]))
            with nvcc_module.serving(module):
                check("nvcc", threads)

        with pytest.raises((*NOTICED, RuntimeError)) as found:
            build_and_check()
    # what failed is a launch, and no compiler
    assert isinstance(found.value, NOTICED) or str(found.value).startswith("CUDA: ")
