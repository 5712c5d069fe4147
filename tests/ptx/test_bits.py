"""Every kernel's PTX beside the CPU's kernels, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    DIRECTIONS,
    DTYPES,
    FORMATS,
    GROUP,
    alignment_of,
    along,
    assert_aligned,
    assert_same_run,
    extreme_values,
    make_state,
    make_weights,
    make_window,
    models,
    run,
    same_bits,
    side_by_side,
    two_groups,
)

from salsa_fused.kernels import Kernels, direction_of
from salsa_fused.kernels.backends.cuda import CudaBackend

from .conftest import EVERY, ONE

on_every_architecture = pytest.mark.parametrize("backend", EVERY, indirect=True)
on_one = pytest.mark.parametrize("backend", ONE, indirect=True)
on_every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
on_every_dtype = pytest.mark.parametrize("dtype", DTYPES)
fewer_examples = settings(max_examples=settings.default.max_examples // 8)

CHUNK = CudaBackend.chunk_size
SIZES = [1, 7, 8, 9, 511, 512, 513, 2047, 4096, 5003, 2 * CHUNK + 9]


@pytest.mark.parametrize(
    ("backend", "dtype", "direction"),
    [
        pytest.param(
            *backend.values,
            dtype,
            direction,
            marks=backend.marks,
            id=f"{backend.id}-{str(dtype).removeprefix('torch.')}-{direction}",
        )
        for backend in EVERY
        for dtype in DTYPES
        for direction in DIRECTIONS
        # on the architectures that are slow ones conversions are looked at with Adam alone
        if not backend.marks or dtype == torch.float32 or direction == "adam"
    ],
    indirect=["backend"],
)
def test_over_sizes_and_states(dtype, direction, backend):
    def make():
        weights = make_weights(SIZES, dtype, missing={3})
        return weights, None, make_state(weights[:5])

    assert_same_run(along(direction, make), (backend, "native"))


HALF, SLOW = torch.bfloat16, pytest.mark.slow
STORED = [
    (HALF, "all", "adam"),
    *[pytest.param(HALF, "all", one, marks=SLOW) for one in DIRECTIONS if one != "adam"],
    *[pytest.param(HALF, one, "adam", marks=SLOW) for one in FORMATS if one != "all"],
    pytest.param(HALF, "masters", "sgd", marks=SLOW),
    pytest.param(torch.float16, "all", "adam", marks=SLOW),
    pytest.param(torch.float32, "moments", "adam", marks=SLOW),
]


@on_one
@pytest.mark.parametrize(("dtype", "formats", "direction"), STORED)
def test_what_is_stored_otherwise(dtype, formats, direction, backend):
    def make():
        weights = make_weights(SIZES, dtype, missing={3})
        return weights, None, make_window(weights, make_state(weights))

    assert_same_run(along(direction, make), (backend, "native"), formats=FORMATS[formats])
    ours, theirs = (
        alignment_of(name, *along(direction, make)(), FORMATS[formats])
        for name in (backend, "native")
    )
    assert ours == pytest.approx(theirs, rel=1e-9)


@on_one
@on_every_direction
@pytest.mark.parametrize("make", [two_groups, extreme_values, side_by_side])
def test_special_models(make, direction, backend):
    assert_same_run(along(direction, make), (backend, "native"))


@on_one
@on_every_direction
@pytest.mark.parametrize("unit", [0, 1])
def test_trials_of_one_unit(unit, direction, backend):
    assert_same_run(along(direction, two_groups), (backend, "native"), unit=unit)


@on_one
@fewer_examples
@given(
    model=models(),
    direction=st.sampled_from(DIRECTIONS),
    unit=st.sampled_from([None, None, 0, 1]),
)
def test_over_shapes_strides_alignments_dtypes_groups_and_missing_gradients(
    backend, model, direction, unit
):
    assert_same_run(along(direction, model.build), (backend, "native"), unit=unit)


def shifted(tensor):
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return room[1:].view(tensor.shape).copy_(tensor)


@on_one
@on_every_dtype
@pytest.mark.parametrize("which", ["weight", "gradient", "exp_avg", "exp_avg_sq"])
def test_one_unaligned_tensor_of_a_row(which, dtype, backend):
    """One of the four is enough to forbid vectors, and only in its row."""

    def make():
        weights = make_weights([3000, 3000], dtype)
        state = make_state(weights)
        if which == "weight":
            weights[0].data = shifted(weights[0])
        elif which == "gradient":
            weights[0].grad = shifted(weights[0].grad)
        else:
            state[weights[0]][which] = shifted(state[weights[0]][which])
        return weights, None, state

    assert_same_run(make, (backend, "native"))
    weights, _, state = make()
    kernels = Kernels(backend)
    kernels.refresh([{**GROUP, "params": weights}], state)
    (bucket,) = kernels.buckets
    assert bucket.selection.aligned == [False, True]


@on_one
@on_every_direction
@pytest.mark.parametrize(
    ("flag", "skipped"), [(0.0, False), (-0.0, False), (1.0, True), (math.nan, True)]
)
def test_the_skip_flag(flag, skipped, direction, backend):
    assert_skips(backend, flag, skipped, direction)


def assert_skips(backend, flag, skipped, direction):
    weights = make_weights([1000, 9])
    state = make_state(weights)
    groups = [{**GROUP, "params": weights, "direction": direction}]
    names = direction_of(groups[0]).moments
    everything = [*weights, *(state[w][name] for w in weights for name in names)]
    before = [tensor.clone() for tensor in everything]
    kernels = Kernels(backend)
    kernels.refresh(groups, state)
    kernels.final_write(groups, 0.1, skip=torch.tensor(flag))
    kernels.release()
    assert [same_bits(a, b) for a, b in zip(before, everything)] == [skipped] * len(before)
    kernels.refresh(groups, state)
    kernels.final_write(groups, 0.1)  # the flag is not remembered
    assert not any(same_bits(a, b) for a, b in zip(before, everything))


@on_one
@on_every_direction
def test_any_order_of_the_threads(direction, backend, threads):
    """The bits are the same, those of the slope and of the ratios included."""

    def make():
        weights = make_weights([5003, CHUNK + 1, 77])
        return weights, None, make_state(weights)

    slopes = set()
    for order, seed in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
        with threads.in_order(order, seed):
            assert_same_run(along(direction, make), (backend, "native"))
            slopes.add(run(backend, *along(direction, make)())[1])
    assert len(slopes) == 1


# -- how the weights lie to where they were ---------------------------------------------------


@on_every_architecture
@on_every_dtype
def test_alignment_over_sizes(dtype, backend):
    def make():
        weights = make_weights(SIZES, dtype, missing={3})
        return weights, None, make_window(weights, make_state(weights[:5]), without={0, 4})

    assert_aligned((backend, "native", "reference"), make)
    assert len({alignment_of(backend, *make()) for _ in range(3)}) == 1


@on_one
@fewer_examples
@given(model=models())
def test_alignment_over_models(backend, model):
    def make():
        weights, groups, state = model.build()
        without = {i for i in range(len(weights)) if (model.seed >> i) % 3 == 0}
        return weights, groups, make_window(weights, state, without=without)

    assert_aligned((backend, "native"), make)


@on_one
@on_every_dtype
def test_a_window_that_begins_where_no_vector_may(dtype, backend):
    weights = make_weights([3000, 3000], dtype)
    state = make_window(weights, {})
    expected = alignment_of(backend, weights, state=state)
    state[weights[0]]["window_start"] = shifted(state[weights[0]]["window_start"])
    assert alignment_of(backend, weights, state=state) == expected
    kernels = Kernels(backend)
    kernels.refresh([{**GROUP, "params": weights}], state)
    for _ in range(2):
        kernels.alignment()
        (bucket,) = kernels.buckets
        assert [address % 16 for address in bucket.window.addresses] == [0, 0]


@on_one
@pytest.mark.parametrize("unit", [0, 1])
def test_alignment_whatever_the_unit(unit, backend):
    weights, groups, state = two_groups()
    kernels = Kernels(backend)
    kernels.refresh(groups, make_window(weights, state))
    (expected,) = kernels.alignment()
    kernels.first_trial(groups, 0.5, unit)
    kernels.restore()
    assert kernels.buckets[0].unit == unit
    assert kernels.alignment()[0] == expected
