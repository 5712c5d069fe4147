"""The Triton kernels on CPU tensors, bit for bit beside the C++ ones.

Not collected with the rest: Triton decides when it is imported whether it interprets, so
`test_triton.py` runs this file in a process of its own, under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math

import pytest
import torch
from family_systems import SYSTEMS
from follow_reference import follow_in_fp32
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    DIRECTIONS,
    DTYPES,
    GROUP,
    alignment_of,
    along,
    assert_aligned,
    assert_same_run,
    backend_named,
    extreme_values,
    make_state,
    make_weights,
    make_window,
    models,
    run,
    same_bits,
    two_groups,
)
from seeds import seed_torch
from small_net import make_closure, make_net

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels, direction_of
from salsa_fused.kernels.backends.triton import TritonBackend, interpreted

BOTH = ("triton", "native")
CHUNK = TritonBackend.chunk_size
SIZES = [1, 7, 8, 9, 511, 512, 513, 2047, 4096, 5003, 2 * CHUNK + 9]
# a case takes a hundred times as long as the compiled kernels'
fewer_examples = settings(max_examples=settings.default.max_examples // 8)


def test_this_process_interprets():
    assert interpreted()
    assert backend_named("triton").refusal(torch.zeros(1), torch.float32) is None


on_every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@on_every_direction
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_over_sizes_and_states(dtype, direction):
    def make():
        weights = make_weights(SIZES, dtype, missing={3})
        return weights, None, make_state(weights[:5])

    assert_same_run(along(direction, make), BOTH)


@on_every_direction
@pytest.mark.parametrize("make", [two_groups, extreme_values])
def test_bits_of_special_models(make, direction):
    assert_same_run(along(direction, make), BOTH)


@fewer_examples
@given(
    model=models(),
    direction=st.sampled_from(DIRECTIONS),
    unit=st.sampled_from([None, None, 0, 1]),
)
def test_bits_over_shapes_strides_alignments_dtypes_groups_and_missing_gradients(
    model, direction, unit
):
    assert_same_run(along(direction, model.build), BOTH, unit=unit)


@on_every_direction
@pytest.mark.parametrize("unit", [0, 1])
def test_bits_of_trials_of_one_unit(unit, direction):
    assert_same_run(along(direction, two_groups), BOTH, unit=unit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["weight", "gradient", "exp_avg", "exp_avg_sq"])
def test_one_unaligned_tensor_of_a_row(dtype, which):
    """One of the four is enough to forbid vectors, and only in its row."""

    def shifted(tensor):
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        return room[1:].view(tensor.shape).copy_(tensor)

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

    assert_same_run(make, BOTH)
    weights, _, state = make()
    kernels = Kernels("triton")
    kernels.refresh([{**two_groups()[1][0], "params": weights}], state)
    (bucket,) = kernels.buckets
    assert bucket.selection.aligned == [False, True]


@pytest.mark.parametrize(
    ("flag", "skipped"), [(0.0, False), (-0.0, False), (1.0, True), (math.nan, True)]
)
@on_every_direction
@pytest.mark.parametrize("backend", ["triton", "native", "reference"])
def test_the_skip_flag(backend, flag, skipped, direction):
    weights = make_weights([1000, 9])
    state = make_state(weights)
    groups = [{**two_groups()[1][0], "params": weights, "direction": direction}]
    everything = [*weights]
    names = direction_of(groups[0]).moments
    everything += [state[w][name] for w in weights for name in names]
    before = [tensor.clone() for tensor in everything]
    kernels = Kernels(backend)
    kernels.refresh(groups, state)
    kernels.final_write(groups, 0.1, skip=torch.tensor(flag))
    kernels.release()
    assert [same_bits(a, b) for a, b in zip(before, everything)] == [skipped] * len(before)
    kernels.refresh(groups, state)
    kernels.final_write(groups, 0.1)  # the flag is not remembered
    assert not any(same_bits(a, b) for a, b in zip(before, everything))


def test_the_slope_repeats_bit_for_bit():
    for direction in DIRECTIONS:
        group = {**GROUP, "direction": direction}
        runs = [make_weights([5003, CHUNK + 1, 77]) for _ in range(3)]
        slopes = {run("triton", weights, [{**group, "params": weights}])[1] for weights in runs}
        assert len(slopes) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_alignment_over_sizes(dtype):
    def make():
        weights = make_weights(SIZES, dtype, missing={3})
        return weights, None, make_window(weights, make_state(weights[:5]), without={0, 4})

    assert_aligned(("triton", "native", "reference"), make)
    assert len({alignment_of("triton", *make()) for _ in range(3)}) == 1


@fewer_examples
@given(model=models())
def test_alignment_over_shapes_strides_alignments_dtypes_groups_and_missing_gradients(model):
    def make():
        weights, groups, state = model.build()
        without = {i for i in range(len(weights)) if (model.seed >> i) % 3 == 0}
        return weights, groups, make_window(weights, state, without=without)

    assert_aligned(BOTH, make)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_that_begins_where_no_vector_may(dtype):
    weights = make_weights([3000, 3000], dtype)
    state = make_window(weights, {})
    expected = alignment_of("triton", weights, state=state)
    start = state[weights[0]]["window_start"]
    room = torch.empty(3001, dtype=dtype)
    state[weights[0]]["window_start"] = room[1:].copy_(start)
    assert alignment_of("triton", weights, state=state) == expected
    kernels = Kernels("triton")
    kernels.refresh([{**GROUP, "params": weights}], state)
    for _ in range(2):
        kernels.alignment()
        (bucket,) = kernels.buckets
        assert [address % 16 for address in bucket.window.addresses] == [0, 0]


@pytest.mark.parametrize("unit", [0, 1])
def test_alignment_whatever_the_unit(unit):
    weights, groups, state = two_groups()
    kernels = Kernels("triton")
    kernels.refresh(groups, make_window(weights, state))
    (expected,) = kernels.alignment()
    kernels.first_trial(groups, 0.5, unit)
    kernels.restore()
    assert kernels.buckets[0].unit == unit
    assert kernels.alignment()[0] == expected


@pytest.mark.parametrize("name", ["SGD+SaLSa", "PLASLS", "LAMBC, PLASLS"])
def test_systems_follow_their_references(name):
    assert follow_in_fp32("triton", 30, **SYSTEMS[name]) < 5


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"search_period": 1, "weight_decay": 0.1},
        {"direction": "sgd"},
        {"direction": "lamb", "weight_decay": 0.1},
    ],
)
def test_a_run_takes_the_same_steps(keywords):
    """30 steps on real losses: every step size, every weight, every moment."""
    runs = []
    for backend in BOTH:
        net = make_net(0, norm=False)
        optimizer = FusedSaLSa(net.parameters(), backend=backend, check_replay=False, **keywords)
        found = []
        for step in range(30):
            seed_torch(step)
            optimizer.step(make_closure(net, step))
            found.append((optimizer.step_size, *[p.detach().clone() for p in net.parameters()]))
        assert optimizer.backends == (backend,)
        assert optimizer.param_groups[0]["searches"] > 10
        assert bool(optimizer.state) == (keywords.get("direction") != "sgd")
        found.append((0.0, *[entry["exp_avg_sq"] for entry in optimizer.state.values()]))
        runs.append(found)
    for step, (ours, theirs) in enumerate(zip(*runs)):
        assert ours[0] == theirs[0], f"step size of step {step}"
        assert all(map(same_bits, ours[1:], theirs[1:])), f"tensors after step {step}"
