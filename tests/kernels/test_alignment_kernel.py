"""<g, window_start - w> over a whole model, and where a window of steps begins."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from kernel_cases import (
    DIRECTIONS,
    DTYPES,
    GROUP,
    alignment_of,
    assert_aligned,
    backend_named,
    make_state,
    make_weights,
    make_window,
    models,
    same_bits,
    two_groups,
)
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels, direction_of, window

SIZES = [1, 7, 9, 511, 512, 513, 32767, 32768, 32769, 100_003]
BOTH = ("native", "reference")
on_every_backend = pytest.mark.parametrize("backend", BOTH)
on_every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def one_group(weights, **keywords):
    return [{**GROUP, **keywords, "params": weights}]


# -- the sum ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [
        ("reference", torch.float64, 1e-14),
        *[(backend, dtype, 1e-6) for backend in BOTH for dtype in DTYPES],
    ],
)
def test_against_the_formula(backend, dtype, tolerance):
    weights = make_weights(SIZES, dtype, missing={2, 5})
    state = make_window(weights, make_state(weights), without={1, 5, 6})
    terms = [
        w.grad.double().numpy() * (state[w]["window_start"].double() - w.double()).numpy()
        for i, w in enumerate(weights)
        if i not in {1, 2, 5, 6}
    ]
    terms = np.concatenate(terms)
    found = alignment_of(backend, weights, state=state)
    assert abs(found - math.fsum(terms)) <= tolerance * np.abs(terms).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_backend_adds_the_same_terms(dtype):
    def make():
        weights = make_weights(SIZES, dtype, missing={3})
        return weights, None, make_window(weights, make_state(weights[:5]), without={0, 4})

    assert_aligned(BOTH, make)


@given(model=models())
def test_over_shapes_strides_dtypes_groups_and_missing_gradients(model):
    def make():
        weights, groups, state = model.build()
        without = {i for i in range(len(weights)) if (model.seed >> i) % 3 == 0}
        return weights, groups, make_window(weights, state, without=without)

    assert_aligned(BOTH, make)


@on_every_backend
def test_neither_factors_nor_signs_nor_units_count(backend):
    found = []
    for changes in ({}, {"lr": 0.01}, {"maximize": True}, {"weight_decay": 0.3}):
        weights, groups, state = two_groups()
        groups[0].update(changes)
        found.append(alignment_of(backend, weights, groups, make_window(weights, state)))
    kernels = Kernels(backend)
    kernels.refresh(groups, state)
    kernels.first_trial(groups, 0.5, 1)
    kernels.restore()
    assert [bucket.unit for bucket in kernels.buckets] == [1]
    found.append(math.fsum(part.item() for part in kernels.alignment()))
    assert len({*found}) == 1


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_bits_whatever_the_number_of_threads(threads):
    weights = make_weights(SIZES)
    state = make_window(weights, {})
    before = torch.get_num_threads()
    found = set()
    try:
        for number in (threads, 1, threads):
            torch.set_num_threads(number)
            found.add(alignment_of("native", weights, state=state))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@on_every_direction
@on_every_backend
def test_what_lies_as_before_is_not_looked_at_again(backend, direction, monkeypatch):
    weights = make_weights([50, 60, 70], missing={1})
    groups, kernels = one_group(weights, direction=direction), Kernels(backend)
    state, found = make_window(weights, make_state(weights)), []
    looked, look = [], window.start_like
    monkeypatch.setattr(window, "start_like", lambda *given: looked.append(1) or look(*given))
    for turn in range(4):
        if turn == 3:  # elsewhere
            for entry in state.values():
                entry["window_start"] = entry["window_start"].clone()
        kernels.refresh(groups, state)
        found.append(kernels.alignment()[0].item())
        kernels.release()
    assert len({*found}) == 1 and len(looked) == 2
    weights[1].grad = weights[1].clone()
    kernels.refresh(groups, state)
    expected = alignment_of(backend, weights, groups, state)
    assert kernels.alignment()[0].item() == expected != found[0]


@on_every_direction
@on_every_backend
def test_nothing_is_written(backend, direction):
    weights = make_weights(SIZES)
    state = make_window(weights, make_state(weights))
    everything = [*weights, *[w.grad for w in weights]]
    names = ("exp_avg", "exp_avg_sq", "window_start")
    everything += [entry[name] for entry in state.values() for name in names]
    before = [(x.clone(), x._version) for x in everything]
    alignment_of(backend, weights, one_group(weights, direction=direction), state)
    assert all(same_bits(x, y) and x._version == v for x, (y, v) in zip(everything, before))


@on_every_backend
def test_of_several_launches(backend):
    """One number of each, where it has any row with both; the rest are not asked."""
    weights = [*make_weights([5, 6]), *make_weights([7, 8], torch.bfloat16)]
    weights[2].grad = None
    state = make_window(weights, {}, without={3})
    kernels = Kernels(backend)
    kernels.refresh(one_group(weights), state)
    (only,) = kernels.alignment()
    assert only.dtype == torch.float64 and only.shape == () and len(kernels.buckets) == 2
    kernels.release()
    assert [bucket.window.tensors for bucket in kernels.buckets] == [[], []]
    kernels.refresh(one_group(weights), {})
    assert kernels.alignment() == []


@on_every_backend
def test_it_reads_the_weights_that_are_there_and_not_the_saved_ones(backend):
    weights = [torch.ones(3)]
    weights[0].grad = torch.full((3,), 2.0)
    kernels, state = Kernels(backend), {weights[0]: {"window_start": torch.zeros(3)}}
    groups = one_group(weights, direction="sgd")
    kernels.refresh(groups, state)
    assert kernels.alignment()[0].item() == -6.0
    kernels.first_trial(groups, 0.5)
    assert kernels.alignment()[0].item() == 0.0  # the trial is at 0
    kernels.restore()
    weights[0].data = torch.full((3,), 2.0)  # elsewhere
    assert kernels.alignment()[0].item() == -12.0


# -- what stands in the state -----------------------------------------------------------------


@on_every_backend
def test_a_start_that_lies_otherwise_is_read_all_the_same(backend):
    weights = make_weights([(6, 8)])
    state = make_window(weights, {})
    start = state[weights[0]]["window_start"]
    expected = alignment_of(backend, weights, state=state)
    for other in (start.double(), start.t().contiguous().t(), start.repeat(1, 2)[:, :8]):
        state[weights[0]]["window_start"] = other
        assert alignment_of(backend, weights, state=state) == expected


@on_every_backend
def test_a_start_that_nobody_can_read(backend):
    weights = make_weights([(6, 8)])
    state = {weights[0]: {"window_start": torch.zeros(8, 6)}}
    with pytest.raises(RuntimeError, match=r"has shape \(6, 8\) now, and its `window_start` has"):
        alignment_of(backend, weights, state=state)
    state[weights[0]]["window_start"] = freed = torch.zeros(6, 8)
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"`window_start` of parameter 0 .*has no memory"):
        alignment_of(backend, weights, state=state)


@on_every_direction
def test_what_is_exchanged_between_steps_is_noticed(direction, looks):
    weights = make_weights([50, 60])
    groups, state, kernels = one_group(weights, direction=direction), {}, Kernels()

    def alignment():
        kernels.refresh(groups, state)
        found = [part.item() for part in kernels.alignment()]
        kernels.final_write(groups, 0.0)
        kernels.commit(state)
        kernels.release()
        return found

    assert alignment() == []
    for weight in weights:
        state.setdefault(weight, {})["window_start"] = weight + weight.grad
    assert alignment() == [pytest.approx(sum(w.grad.double().square().sum() for w in weights))]
    state[weights[0]]["window_start"] = weights[0].clone()
    assert alignment() == [pytest.approx(weights[1].grad.double().square().sum())]
    state[weights[1]] = {**state[weights[1]], "window_start": weights[1].clone()}
    assert alignment() == [0.0]
    del state[weights[0]]["window_start"], state[weights[1]]
    assert alignment() == []


# -- where a window begins --------------------------------------------------------------------


def step(kernels, groups, state, *, unit=None, search=True, size=0.5):
    """A whole step that begins a window."""
    assert kernels.refresh(groups, state)
    if search:
        kernels.first_trial(groups, 2 * size, unit)
        kernels.next_trial(groups, size)
    kernels.prepare_window(state)
    kernels.final_write(groups, size if unit is None else [size, 0.1])
    kernels.commit(state)
    kernels.begin_window(state)
    kernels.release()


@on_every_direction
@on_every_backend
@pytest.mark.parametrize(("unit", "search"), [(None, True), (None, False), (0, True), (1, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_begins_at_the_weights_before_the_step(dtype, unit, search, backend, direction):
    weights = make_weights([(7, 9), 40, (3, 2, 5, 4), 33_000], dtype, missing={1})
    weights[2].data = weights[2].data.to(memory_format=torch.channels_last)
    weights[2].grad = weights[2].grad.to(memory_format=torch.channels_last)
    groups = [
        {**GROUP, "direction": direction, "params": part} for part in (weights[:2], weights[2:])
    ]
    state, kernels, before = {}, Kernels(backend), []
    for turn in range(3):
        starts = {i: state[w]["window_start"] for i, w in enumerate(weights) if turn and i != 1}
        before = [weight.clone() for weight in weights]
        step(kernels, groups, state, unit=unit, search=search)
        assert weights[1] not in state
        for i in (0, 2, 3):
            entry, group = state[weights[i]], i // 2
            start = entry["window_start"]
            assert same_bits(start, before[i]) and not torch.equal(start, weights[i])
            assert start.dtype == dtype and start.stride() == weights[i].stride()
            assert start.untyped_storage().data_ptr() != weights[i].untyped_storage().data_ptr()
            # what a search has saved is copied to where the start stood before
            in_place = search and unit in (None, group)
            assert not turn or (start is starts[i]) == in_place
            names = {"window_start"} | (
                {"step", *names} if (names := direction_of(groups[0]).moments) else set()
            )
            assert {*entry} == names and entry.get("step", turn + 1) == turn + 1
    assert_aligned([backend], lambda: (weights, groups, state))


@on_every_backend
def test_of_sgd_whose_trial_is_the_step(backend):
    weights = make_weights([50])
    before = weights[0].clone()
    groups, state, kernels = one_group(weights, direction="sgd"), {}, Kernels(backend)
    kernels.refresh(groups, state)
    kernels.first_trial(groups, 0.5)
    at = weights[0].clone()
    kernels.prepare_window(state)
    kernels.final_write(groups, 0.5)
    kernels.commit(state)
    kernels.begin_window(state)
    assert same_bits(weights[0], at) and same_bits(state[weights[0]]["window_start"], before)


@on_every_direction
@pytest.mark.parametrize("unit", [None, 0])
@pytest.mark.parametrize("with_window", [True, False])
def test_an_exception_before_it_begins_changes_nothing(with_window, unit, direction):
    weights, groups, state = two_groups()
    groups = [{**group, "direction": direction} for group in groups]
    if with_window:
        make_window(weights, state, without={2})
    kernels = Kernels("native")
    before = [weight.clone() for weight in weights]
    entries = {weight: dict(entry) for weight, entry in state.items()}
    bits = {w: {k: torch.as_tensor(x).clone() for k, x in e.items()} for w, e in state.items()}
    kernels.refresh(groups, state)
    kernels.first_trial(groups, 0.5, unit)
    kernels.prepare_window(state)
    kernels.restore()
    kernels.release()
    assert all(map(same_bits, weights, before))
    assert [*state] == [*entries]
    for weight, entry in state.items():
        assert {*entry} == {*entries[weight]}
        for name, value in entry.items():
            assert value is entries[weight][name]
            assert torch.equal(torch.as_tensor(value), bits[weight][name])
    assert all(not bucket.window.new for bucket in kernels.buckets)
    step(kernels, groups, state, unit=unit)
    assert all(same_bits(state[w]["window_start"], b) for w, b in zip(weights, before))


def test_without_memory_for_it_nothing_changes(monkeypatch):
    weights = make_weights([50, 60, 70])
    groups, state, kernels = one_group(weights), {}, Kernels("native")
    kernels.refresh(groups, state)
    kernels.first_trial(groups, 0.5)
    make, made = window.empty_like, []

    def full(weight):
        if len(made) == 2:
            raise torch.OutOfMemoryError
        made.append(make(weight))
        return made[-1]

    monkeypatch.setattr(window, "empty_like", full)
    with pytest.raises(torch.OutOfMemoryError):
        kernels.prepare_window(state)
    assert state == {} and len(made) == 2


@on_every_direction
def test_a_start_that_fits_no_longer_is_made_anew(direction):
    weights = make_weights([(6, 8), 50])
    state = {weights[0]: {"window_start": torch.zeros(8, 6)}}
    state[weights[1]] = {"window_start": torch.zeros(50, dtype=torch.bfloat16)}
    before = [weight.clone() for weight in weights]
    step(Kernels("native"), one_group(weights, direction=direction), state)
    assert all(same_bits(state[w]["window_start"], b) for w, b in zip(weights, before))


@on_every_direction
def test_tensors_of_zero_size_have_none(direction):
    weights = make_weights([5, 0])
    groups, state, kernels = one_group(weights, direction=direction), {}, Kernels()
    for _ in range(2):
        step(kernels, groups, state)
    assert "window_start" in state[weights[0]]
    assert "window_start" not in state.get(weights[1], {})


def test_sgds_entries_are_no_moments():
    """Where the direction changes, moments begin beside what a window has left."""
    runs = []
    for with_window in (True, False):
        weights, state, kernels = make_weights([50, 60]), {}, Kernels()
        if with_window:
            make_window(weights, state)
        for direction in ("sgd", "adam", "adam", "sgd", "lamb"):
            groups = one_group(weights, direction=direction)
            for _ in range(2):
                kernels.refresh(groups, state)
                kernels.final_write(groups, 1e-2)
                kernels.commit(state)
                kernels.release()
        assert [entry["step"] for entry in state.values()] == [6, 6]
        assert all(("window_start" in entry) == with_window for entry in state.values())
        runs.append([*weights, *[entry["exp_avg_sq"] for entry in state.values()]])
    assert all(map(same_bits, *runs))


# -- the optimizer ----------------------------------------------------------------------------


@on_every_direction
@on_every_backend
def test_plain_steps_call_no_kernel_for_it_and_keep_what_stands_there(
    backend, direction, monkeypatch
):
    def refuse(work):
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(backend_named(backend), "alignment", refuse)
    runs = []
    for with_window in (True, False):
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        optimizer = FusedSaLSa(
            net.parameters(), backend=backend, direction=direction, search_period=None, lr=0.1
        )
        inputs, starts = torch.randn(16, 4), []
        for i in range(9):
            if i == 3 and with_window:
                for p in net.parameters():
                    starts.append(p.detach().clone())
                    optimizer.state[p]["window_start"] = starts[-1]
            optimizer.step(lambda net=net, inputs=inputs: net(inputs).square().mean())
        for p, start in zip(net.parameters(), starts):
            assert optimizer.state[p]["window_start"] is start
            assert not torch.equal(start, p)
        runs.append([p.detach() for p in net.parameters()])
    assert all(map(same_bits, *runs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_window_is_the_same_window(dtype):
    weights = [nn.Parameter(w) for w in make_weights([(7, 9), 33_000], dtype)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = FusedSaLSa(weights, search_period=None)
    with torch.no_grad():
        step(Kernels(), optimizer.param_groups, optimizer.state, search=False, size=1e-2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file)["state"]
    expected = alignment_of("native", weights, optimizer.param_groups, optimizer.state)
    state = {weight: saved[i] for i, weight in enumerate(weights)}
    assert expected != 0.0
    assert alignment_of("native", weights, optimizer.param_groups, state) == expected
