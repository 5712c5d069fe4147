"""The kernels: `native` against `reference` bit for bit, and the kernels of tensors."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    DIRECTIONS,
    DTYPES,
    GROUP,
    PLACES,
    along,
    assert_same_run,
    backend_named,
    extreme_values,
    make_state,
    make_weights,
    models,
    random_bits,
    run,
    same_bits,
    two_groups,
)

from salsa_fused.kernels import Kernels, direction_of
from salsa_fused.kernels.bucket import Bucket
from salsa_fused.kernels.directions import Scalars
from salsa_fused.kernels.memory import is_dense, overlaps_itself
from salsa_fused.kernels.rows import ROW_FIELDS
from salsa_fused.kernels.saved import Saved

CSRC = Path(__file__).parent.parent.parent / "csrc"


# -- native against reference, bit for bit ----------------------------------------------------

SIZES = [1, 7, 8, 9, 511, 512, 513, 32768, 32769, 100_003]


on_every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@on_every_direction
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_over_sizes_and_states(dtype, direction):
    def make():
        weights = make_weights(SIZES, dtype, missing={3})
        return weights, None, make_state(weights[:5])

    assert_same_run(along(direction, make))


@on_every_direction
def test_bits_with_groups_and_step_counts(direction):
    assert_same_run(along(direction, two_groups))


@on_every_direction
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_bits_whatever_the_number_of_threads(threads, direction):
    make = along(direction, lambda: (make_weights(SIZES), None, None))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, slope = run("native", *make())
        torch.set_num_threads(1)
        theirs, one_slope = run("native", *make())
    finally:
        torch.set_num_threads(before)
    assert slope == one_slope
    assert all(same_bits(a, b) for x, y in zip(ours, theirs) for a, b in zip(x, y))


@on_every_direction
def test_extreme_values_give_the_same_bits(direction):
    assert_same_run(along(direction, extreme_values))


@given(
    model=models(),
    direction=st.sampled_from(DIRECTIONS),
    unit=st.sampled_from([None, None, 0, 1]),
)
def test_bits_over_shapes_strides_dtypes_groups_and_missing_gradients(model, direction, unit):
    assert_same_run(along(direction, model.build), unit=unit)


@on_every_direction
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("unit", [0, 1])
def test_trials_of_one_unit(unit, backend, direction):
    """They move this unit as a search of all would, and nothing else; then all take their step."""
    whole, _ = run(backend, *along(direction, two_groups)())
    ours, slope = run(backend, *along(direction, two_groups)(), unit=unit)
    untouched, _, state = two_groups()
    chosen = range(3) if unit == 0 else range(3, 6)
    for bucket in range(2):
        for i in range(6):
            expected = whole[bucket][i] if i in chosen else untouched[i]
            assert same_bits(ours[bucket][i], expected)
    one_by_one = []
    for group in (0, 1):  # each at its own step size
        weights, groups, state = along(direction, two_groups)()
        kernels = Kernels(backend)
        kernels.refresh(groups, state)
        kernels.final_write(groups, 0.37 * 0.49 * (1.0, 0.3)[group])
        one_by_one += weights[:3] if group == 0 else weights[3:]
    assert all(map(same_bits, ours[2][:6], one_by_one))
    weights, groups, state = along(direction, two_groups)()
    for i, weight in enumerate(weights):
        if i not in chosen:
            weight.grad = None
    assert slope == pytest.approx(run(backend, weights, groups, state)[1], rel=1e-12)


def test_only_the_chunks_of_the_unit_are_launched(monkeypatch):
    backend, seen = backend_named("native"), []
    for kernel in ("first_trial", "next_trial", "step"):
        call = getattr(backend, kernel)

        def spy(work, call=call):
            rows = {*work.chunks.raw[::3]}
            seen.append((sorted(rows), work.saved is not None))
            return call(work)

        monkeypatch.setattr(backend, kernel, spy)
    run("native", *two_groups(), unit=1)
    mine, rest = [3, 4, 5], [0, 1, 2]
    assert seen[:2] == [(mine, True)] * 2
    assert seen[2:4] == [(mine, True), (rest, False)]  # the others were not saved
    assert seen[4] == (rest + mine, False)


def test_a_unit_without_rows_moves_nothing():
    weights = make_weights([50, 50])
    groups = [{**GROUP, "params": weights}, {**GROUP, "params": []}]
    kernels = Kernels("native")
    kernels.refresh(groups, {})
    before = [weight.clone() for weight in weights]
    assert kernels.first_trial(groups, 0.5, 1) == []
    kernels.next_trial(groups, 0.5)
    kernels.restore()
    assert all(map(torch.equal, weights, before))
    kernels.final_write(groups, [0.5, 0.5])
    assert not any(map(torch.equal, weights, before))


def test_weights_that_move_during_the_search_of_a_unit():
    """The chunks are cut anew, and still the unit's."""
    runs = []
    for moving in (False, True):
        weights, groups, state = two_groups()
        kernels = Kernels("native")
        kernels.refresh(groups, state)
        kernels.first_trial(groups, 0.5, 0)
        if moving:
            for weight in weights:
                weight.data = weight.data.clone()
        kernels.next_trial(groups, 0.4)
        kernels.final_write(groups, [0.4, 0.2])
        kernels.release()
        (bucket,) = kernels.buckets
        assert bucket.selection.all.count == 6
        runs.append(weights)
    assert all(map(same_bits, *runs))


# -- every instruction set --------------------------------------------------------------------

SHIM = r"""
#include <cmath>
#include "cpu_kernels.h"
#include "storage.h"
using namespace salsa;
extern "C" double run(int kernel, int direction, int dtype, int stream, std::int64_t* rows,
                      std::int64_t* chunks, std::int64_t n, float* scalars, void* saved,
                      double* partials) {
    const cpu::Launch launch{reinterpret_cast<Row*>(rows), reinterpret_cast<Chunk*>(chunks), n,
                             reinterpret_cast<Scalars*>(scalars), saved, Dtype(dtype),
                             stream != 0, 1, direction, nullptr, {0}};
    if (kernel == 0) return cpu::first_trial(launch, partials);
    if (kernel == 1) cpu::next_trial(launch);
    if (kernel == 2) cpu::step(launch);
    if (kernel == 3) {
        float ratio;
        cpu::trust_ratios(launch, partials, &ratio, 1, INFINITY);
        return ratio;
    }
    if (kernel == 4) {
        const std::int64_t start = reinterpret_cast<std::int64_t>(saved);
        return cpu::alignment(launch, &start, partials);
    }
    return 0.0;
}
template <class T>
void convert_as(std::int64_t n, const T* from, float* read, const float* numbers, T* written) {
    for (std::int64_t i = 0; i < n; ++i) {
        read[i] = load(from[i]);
        written[i] = Stored<T>::from(numbers[i]);
    }
}
extern "C" void convert(int dtype, std::int64_t n, void* from, float* read, float* numbers,
                        void* written) {
    if (dtype == 1) convert_as(n, (bf16*)from, read, numbers, (bf16*)written);
    if (dtype == 2) convert_as(n, (fp16*)from, read, numbers, (fp16*)written);
}
"""


def cpu_flags():
    path = Path("/proc/cpuinfo")
    return set(path.read_text().split()) if path.exists() else set()


@pytest.mark.parametrize("direction", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("dtype", [0, 1, 2], ids=["fp32", "bf16", "fp16"])
def test_bits_whatever_the_instruction_set(dtype, direction, instruction_sets):
    """The clones that the loader chooses among, and writes past the caches beside others."""
    results = {}
    for name, library in instruction_sets.items():
        library.run.restype = ctypes.c_double
        for stream in (0, 1):
            w, g = (random_bits(1003, dtype, seed) for seed in (1, 2))
            moments = [np.abs(random_bits(1003, 0, seed)) for seed in (3, 4, 5)]
            saved = np.zeros_like(w)
            rows = [[x.ctypes.data for x in (w, g, *moments)] + [0, 0, 0, 0]]
            rows, chunks = np.array(rows), np.array([[0, 0, 600], [0, 600, 1003]])
            scalars = [0.9, 0.1, 0.999, 0.001, 5, 9, 1e-8, 0.01, 0.1, 1, 0.9999, 0.0001, 8, 1]
            scalars, partials = np.array(scalars, dtype=np.float32), np.zeros(4)
            arrays = (rows, chunks, scalars, saved, partials)
            pointers = [ctypes.c_void_p(x.ctypes.data) for x in arrays]
            pointers.insert(2, ctypes.c_int64(2))
            seen = []
            for kernel in (3, 0, 4, 1, 2):
                slope = library.run(kernel, direction, dtype, stream, *pointers)
                seen += [slope, *[x.tobytes() for x in (w, *moments, saved)]]
            results[name, stream] = seen
    first = results["sse2", 0]
    assert len({first[1], first[19]}) == 2  # they are not all the same for want of an effect
    assert all(seen == first for seen in results.values())


@pytest.fixture(scope="module")
def instruction_sets(tmp_path_factory):
    flags = cpu_flags()
    wanted = {"sse2": "-mno-avx", "avx2": "-mavx2 -mfma", "avx512f": "-mavx512f -mfma"}
    wanted = {name: option for name, option in wanted.items() if name in flags}
    if "sse2" not in wanted:
        pytest.skip("not an x86-64 CPU: there is one instruction set only")
    folder = tmp_path_factory.mktemp("instruction_sets")
    (folder / "shim.cpp").write_text(SHIM)
    for name, option in wanted.items():
        command = (
            f"c++ -std=c++17 -O3 -shared -fPIC -fno-math-errno -fno-trapping-math "
            f"-ffp-contract=off -DSALSA_CLONES= {option} -I{CSRC} {CSRC}/cpu_kernels.cpp "
            f"{folder}/shim.cpp -o {folder}/{name}.so"
        )
        subprocess.run(command.split(), check=True)
    return {name: ctypes.CDLL(f"{folder}/{name}.so") for name in wanted}


@pytest.mark.parametrize(("dtype", "torch_dtype"), [(1, torch.bfloat16), (2, torch.float16)])
def test_16_bit_numbers_are_torchs(dtype, torch_dtype, instruction_sets):
    """Every 16-bit number is read as torch reads it; fp32 numbers are rounded as torch rounds."""
    everything = np.arange(2**16, dtype=np.uint16)
    read, written = np.zeros(2**16, dtype=np.float32), np.zeros(2**16, dtype=np.uint16)
    random = np.random.default_rng(0)
    floats = random.integers(0, 2**32, 2**16, dtype=np.uint32).view(np.float32)
    expected = torch.from_numpy(everything.view(np.int16).copy()).view(torch_dtype)
    halves = expected.float().numpy()
    with np.errstate(all="ignore"):
        between = (halves[:-1].astype(np.float64) + halves[1:]) / 2  # ties
    ties = np.resize(between[np.isfinite(between)].astype(np.float32), 2**16)
    library = next(iter(instruction_sets.values()))
    for numbers in (floats, ties):
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (everything, read, numbers, written)]
        library.convert(dtype, ctypes.c_int64(2**16), *pointers)
        rounded = torch.from_numpy(numbers).to(torch_dtype)
        ours = torch.from_numpy(written.view(np.int16).copy()).view(torch_dtype)
        assert torch.equal(ours.isnan(), rounded.isnan())
        numeric = ~rounded.isnan()
        assert same_bits(ours[numeric], rounded[numeric])
    finite = ~np.isnan(halves)
    assert np.array_equal(read[finite].view(np.uint32), halves[finite].view(np.uint32))
    assert np.isnan(read[~finite]).all()


# -- the kernels --------------------------------------------------------------------------------


def bucket_of(backend, weights, aligned):
    dtype = weights[0].dtype
    adam = direction_of(GROUP)
    bucket = Bucket(backend_named(backend), torch.device("cpu"), dtype, dtype, adam)
    for weight in weights:
        bucket.add(weight, 0, "")
    length = bucket.backend.vector_bytes // dtype.itemsize
    bucket.selection.cut(bucket.rows, aligned, length, bucket.backend.chunk_size)
    return bucket


def ranges(bucket):
    """(row, start, end, whether in vectors) of every chunk, in elements."""
    unit = bucket.backend.vector_bytes // bucket.dtype.itemsize
    chunks = list(zip(*[iter(bucket.selection.all.raw)] * 3))
    n = bucket.selection.all.n_vector
    vectors = [(row, start * unit, end * unit, True) for row, start, end in chunks[:n]]
    return vectors + [(*chunk, False) for chunk in chunks[n:]]


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_offsets_beyond_32_bits(backend):
    """Chunks of a tensor of more than 2^31 elements, without its memory."""
    weight = torch.empty(2**31 + 5, dtype=torch.float32, device="meta")
    bucket = bucket_of(backend, [weight, torch.zeros(3)], [backend == "triton"] * 2)
    chunks = ranges(bucket)
    starts, ends = zip(*[(start, end) for row, start, end, _ in chunks if row == 0])
    assert starts[0] == 0 and ends[-1] == 2**31 + 5
    assert starts[1:] == ends[:-1]
    saved = Saved(bucket.rows, [0, 1], bucket.dtype, torch.device("meta"))
    assert saved.starts[1] >= 2**31 + 5 and saved.memory.numel() >= 2**31 + 8


@given(
    backend=st.sampled_from(["native", "triton"]),
    dtype=st.sampled_from(DTYPES),
    rows=st.lists(st.tuples(st.integers(1, 100_000), st.booleans()), min_size=1, max_size=8),
)
def test_chunks_cover_every_element_once(backend, dtype, rows):
    sizes, aligned = [size for size, _ in rows], [a for _, a in rows]
    if not backend_named(backend).vector_bytes:
        aligned = [False] * len(rows)
    weights = [torch.empty(size, dtype=dtype, device="meta") for size in sizes]
    bucket = bucket_of(backend, weights, aligned)
    found = ranges(bucket)
    for row, size in enumerate(sizes):
        pieces = sorted((start, end) for of, start, end, _ in found if of == row)
        starts, ends = zip(*pieces)
        assert starts[0] == 0 and ends[-1] == size and starts[1:] == ends[:-1]
        in_vectors = sum(end - start for of, start, end, vector in found if of == row and vector)
        length = bucket.backend.vector_bytes // dtype.itemsize
        assert in_vectors == (size // length * length if aligned[row] else 0)
    assert all(0 < end - start <= bucket.backend.chunk_size for _, start, end, _ in found)
    vectors = [vector for *_, vector in found]
    assert vectors == sorted(vectors, reverse=True)


def test_a_failing_first_trial_restores_what_was_saved_and_no_more():
    weights = make_weights([50, 50])
    before = [weight.clone() for weight in weights]
    kernels = Kernels("native")
    groups = [{**GROUP, "params": weights}]
    kernels.refresh(groups, {})
    kernels.restore()  # nothing was saved: nothing to put back
    assert all(map(torch.equal, weights, before))
    kernels.first_trial(groups, 0.5)
    assert not torch.equal(weights[0], before[0])
    kernels.restore()
    kernels.release()
    assert all(map(torch.equal, weights, before))


def test_autograd_sees_the_writes():
    weight = torch.randn(4, requires_grad=True)
    (weight * weight).sum().backward()
    version = weight._version
    with torch.no_grad():
        run("native", [weight])
    assert weight._version > version


@pytest.mark.parametrize(
    ("tensor", "dense", "overlapping"),
    [
        (torch.zeros(4, 5), True, False),
        (torch.zeros(4, 5).t(), True, False),
        (torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), True, False),
        (torch.zeros(4, 5)[:, :3], False, False),
        (torch.zeros(4, 1).expand(4, 5), False, True),
        (torch.zeros(10).as_strided((4, 3), (2, 1)), False, True),
        (torch.zeros(10).as_strided((3, 3), (3, 1)), True, False),
        (torch.zeros(()), True, False),
        (torch.zeros(0, 5), True, False),
        (torch.zeros(1, 5).expand(1, 5), True, False),
    ],
)
def test_layouts(tensor, dense, overlapping):
    assert is_dense(tensor) == dense
    assert overlaps_itself(tensor) == overlapping


def test_python_and_cpp_agree_on_the_table():
    native = pytest.importorskip("salsa_fused._native", reason="the C++ kernels are not built")
    assert native.scalar_fields == len(Scalars._fields)
    assert native.row_fields == ROW_FIELDS
