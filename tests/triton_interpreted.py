"""The Triton kernels on CPU tensors, bit for bit beside the C++ ones.

Not collected with the rest: Triton decides when it is imported whether it interprets, so
`test_triton.py` runs this file in a process of its own, under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    DIRECTIONS,
    DTYPES,
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
    two_groups,
)
from models import make_closure, make_net
from test_family_trajectories import SYSTEMS, follow_in_fp32

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import BACKENDS, Table
from salsa_fused.kernels.triton_backend import TritonBackend, interpreted

BOTH = ("triton", "native")
CHUNK = TritonBackend.chunk_size
SIZES = [1, 7, 8, 9, 511, 512, 513, 2047, 4096, 5003, 2 * CHUNK + 9]


def test_this_process_interprets():
    assert interpreted()
    assert BACKENDS["triton"].refusal(torch.zeros(1), torch.float32) is None


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
    table = Table(BACKENDS["triton"])
    table.refresh([{**two_groups()[1][0], "params": weights}], state)
    (launch,) = table.launches
    assert launch.aligned == [False, True]


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
    if direction != "sgd":
        everything += [state[w][name] for w in weights for name in ("exp_avg", "exp_avg_sq")]
    before = [tensor.clone() for tensor in everything]
    table = Table(BACKENDS[backend])
    table.refresh(groups, state)
    table.final_write(groups, 0.1, skip=torch.tensor(flag))
    table.release()
    assert [same_bits(a, b) for a, b in zip(before, everything)] == [skipped] * len(before)
    table.refresh(groups, state)
    table.final_write(groups, 0.1)  # the flag is not remembered
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
    table = Table(BACKENDS["triton"])
    table.refresh([{**GROUP, "params": weights}], state)
    for _ in range(2):
        table.alignment()
        (launch,) = table.launches
        assert [address % 16 for address in launch.window_start_addresses] == [0, 0]


@pytest.mark.parametrize("unit", [0, 1])
def test_alignment_whatever_the_unit(unit):
    weights, groups, state = two_groups()
    table = Table(BACKENDS["triton"])
    table.refresh(groups, make_window(weights, state))
    (expected,) = table.alignment()
    table.first_trial(groups, 0.5, unit)
    table.restore()
    assert table.launches[0].unit == unit
    assert table.alignment()[0] == expected


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_follows_its_reference(name):
    assert follow_in_fp32(name, "triton", 300) < 5


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
    """50 steps on real losses: every step size, every weight, every moment."""
    runs = []
    for backend in BOTH:
        net = make_net(0, norm=False)
        optimizer = FusedSaLSa(net.parameters(), backend=backend, check_replay=False, **keywords)
        found = []
        for step in range(50):
            torch.manual_seed(step)
            optimizer.step(make_closure(net, step))
            found.append((optimizer.step_size, *[p.detach().clone() for p in net.parameters()]))
        assert {launch.backend.name for launch in optimizer._table.launches} == {backend}
        assert optimizer.param_groups[0]["searches"] > 10
        assert bool(optimizer.state) == (keywords.get("direction") != "sgd")
        found.append((0.0, *[entry["exp_avg_sq"] for entry in optimizer.state.values()]))
        runs.append(found)
    for step, (ours, theirs) in enumerate(zip(*runs)):
        assert ours[0] == theirs[0], f"step size of step {step}"
        assert all(map(same_bits, ours[1:], theirs[1:])), f"tensors after step {step}"
