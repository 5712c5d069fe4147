"""Masters, and moments in bf16: the same bits by all backends, and what they are for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    BF16,
    DIRECTIONS,
    DTYPES,
    FORMATS,
    GROUP,
    alignment_of,
    along,
    assert_same_run,
    make_state,
    make_weights,
    make_window,
    models,
    run,
    same_bits,
    two_groups,
)

from salsa_fused.kernels import Kernels
from salsa_fused.kernels.rounding import key_of, mixed, random_bits, rounded_at_random
from salsa_fused.kernels.storage import Formats

HASHED, KEY = [0, 0x86D2FA73, 0x99B5E683], 0x963B6DA2
SIZES = [1, 15, 511, 513, (1 << 15) + 7]  # beside the blocks and the chunks of the CPU's kernels
on_every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
with_all_formats = pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
on_both = pytest.mark.parametrize("backend", ["native", "reference"])


@on_every_direction
@pytest.mark.parametrize(
    ("dtype", "formats"),
    [*[(BF16, name) for name in FORMATS], (torch.float16, "all"), (torch.float32, "moments")],
)
def test_bits(dtype, formats, direction):
    def make():
        weights = make_weights(SIZES, dtype, missing={1})
        return weights, None, make_state(weights[:3])

    assert_same_run(along(direction, make), formats=FORMATS[formats])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@with_all_formats
@pytest.mark.parametrize("backend", ["triton", "native"])
def test_bits_on_a_gpu(backend, formats):
    def make():
        weights = make_weights(SIZES, BF16, missing={1})
        return weights, None, make_state(weights[:3])

    assert_same_run(make, (backend, "native"), "cuda", formats=formats)


@given(
    model=models(),
    direction=st.sampled_from(DIRECTIONS),
    unit=st.sampled_from([None, None, 0, 1]),
    formats=st.sampled_from(list(FORMATS.values())),
)
def test_bits_over_shapes_strides_dtypes_groups_and_missing_gradients(
    model, direction, unit, formats
):
    assert_same_run(along(direction, model.build), unit=unit, formats=formats)


def in_bf16():
    """The weights and gradients of `two_groups` in bf16."""
    weights, groups, state = two_groups()
    halves = [weight.to(BF16) for weight in weights]
    for half, weight in zip(halves, weights):
        half.grad = weight.grad.to(BF16)
    place = {id(weight): half for weight, half in zip(weights, halves)}
    groups = [{**group, "params": [place[id(w)] for w in group["params"]]} for group in groups]
    return halves, groups, {place[id(w)]: entry for w, entry in state.items()}


def with_their_values(halves, groups, state):
    """fp32 weights and gradients of the same values."""
    weights = [half.float() for half in halves]
    for weight, half in zip(weights, halves):
        weight.grad = half.grad.float()
    place = {id(half): weight for half, weight in zip(halves, weights)}
    groups = [{**group, "params": [place[id(w)] for w in group["params"]]} for group in groups]
    return weights, groups, {place[id(w)]: entry for w, entry in state.items()}


@on_both
@on_every_direction
@pytest.mark.parametrize("unit", [None, 0, 1])
def test_masters_are_trained_as_fp32_weights(unit, direction, backend):
    """The weights at trials and after steps are these, rounded to nearest."""
    halves, groups, state = along(direction, in_bf16)()
    ours, slope = run(backend, halves, groups, state, unit=unit, formats=Formats(True))
    exact = with_their_values(*along(direction, in_bf16)())
    theirs, expected = run("reference", *exact, unit=unit)
    assert slope == pytest.approx(expected, rel=1e-12)
    for seen, wide in zip(ours, theirs):
        assert all(same_bits(a, b.to(BF16)) for a, b in zip(seen[:6], wide[:6]))
    masters = [state[half]["master_param"] for half in halves]
    assert all(map(same_bits, masters, exact[0]))
    assert not all(torch.equal(a, a.to(BF16).float()) for a in masters)


@on_both
@with_all_formats
def test_a_search_is_undone_completely(formats, backend):
    weights, groups, state = in_bf16()
    before = [weight.clone() for weight in weights]
    kernels = Kernels(backend, formats=formats)
    for _ in range(2):
        kernels.refresh(groups, state)
        kernels.first_trial(groups, 0.5)
        kernels.next_trial(groups, 0.3)
        assert not any(map(torch.equal, weights, before)) and not kernels.stands_still()
        kernels.restore()
        kernels.release()
        assert all(map(same_bits, weights, before))


def test_masters_are_what_a_search_has_saved():
    _, groups, state = in_bf16()
    kernels = Kernels("native", formats=Formats(True))
    kernels.refresh(groups, state)
    kernels.first_trial(groups, 0.5)
    (bucket,) = kernels.buckets
    assert bucket.saved.filled and bucket.saved.memory is None


@on_both
@pytest.mark.parametrize("master_weights", [False, True])
def test_a_trial_that_changes_no_weight_is_noticed(master_weights, backend):
    _, groups, state = in_bf16()
    kernels = Kernels(backend, formats=Formats(master_weights))
    kernels.refresh(groups, state)
    kernels.first_trial(groups, 1e-30)
    assert kernels.stands_still()
    kernels.next_trial(groups, 0.1)
    assert not kernels.stands_still()


def step(kernels, groups, state, size=0.01):
    kernels.refresh(groups, state)
    kernels.final_write(groups, size)
    kernels.commit(state)
    kernels.release()


@on_both
def test_steps_that_a_weight_cannot_show_are_not_lost(backend):
    """400 steps of a fortieth of a bf16 step each."""
    ends = []
    for master_weights in (False, True):
        weight = torch.ones(64, dtype=BF16)
        weight.grad = torch.ones_like(weight)
        kernels, state = Kernels(backend, formats=Formats(master_weights)), {}
        for _ in range(400):
            step(kernels, [{**GROUP, "params": [weight]}], state, 2.0**-8 / 40)
        ends.append(weight)
    assert torch.equal(ends[0], torch.ones_like(ends[0]))
    assert torch.equal(ends[1], torch.full_like(ends[1], 1.0 - 10 * 2.0**-8))


# -- somebody else writes weights ---------------------------------------------------------------


def write_in_place(weight):
    weight[::2] = 7.0


def write_elsewhere(weight):
    weight.data = weight.data.clone()
    weight.data[::2] = 7.0


@on_both
@pytest.mark.parametrize("write", [write_in_place, write_elsewhere])
def test_a_master_follows_what_somebody_else_writes(write, backend):
    """Where the weight still is the rounded master, the master stays."""
    weights, groups, state = in_bf16()
    kernels = Kernels(backend, formats=Formats(True))
    step(kernels, groups, state)
    changed, other = weights[0], weights[1]
    before = [state[weight]["master_param"].clone() for weight in (changed, other)]
    write(changed)
    kernels.refresh(groups, state)
    master = state[changed]["master_param"]
    assert torch.equal(master[::2], torch.full_like(master[::2], 7.0))
    assert torch.equal(master[1::2], before[0][1::2])
    assert torch.equal(state[other]["master_param"], before[1])
    kernels.release()


@on_both
@torch.no_grad()
def test_a_master_follows_a_weight_that_had_no_gradient_meanwhile(backend):
    """Kernels that did not know its master then compare it when they do."""
    weights, groups, state = in_bf16()
    weights[0].requires_grad_()
    step(Kernels(backend, formats=Formats(True)), groups, state)
    changed, gradient = weights[0], weights[0].grad
    kernels, changed.grad = Kernels(backend, formats=Formats(True)), None
    step(kernels, groups, state)
    changed.fill_(7.0)
    step(kernels, groups, state)
    changed.grad = gradient
    step(kernels, groups, state, 0.0)
    assert torch.equal(state[changed]["master_param"], torch.full_like(gradient.float(), 7.0))


def test_masters_are_not_compared_with_weights_in_every_step(monkeypatch):
    weights, groups, state = in_bf16()
    kernels = Kernels("native", formats=Formats(True))
    step(kernels, groups, state)
    compared = []
    monkeypatch.setattr(torch, "where", lambda *given: compared.append(1) or given[1])
    step(kernels, groups, state)
    step(kernels, groups, state)
    assert not compared
    weights[0].add_(1.0)
    step(kernels, groups, state)
    assert len(compared) == len(weights)


# -- rounding at random -------------------------------------------------------------------------


def test_the_hash():
    """All backends have these: a checkpoint goes on with the same bits in another version."""
    assert [mixed(x) for x in (0, 1, 2**32 - 1)] == HASHED
    tensor = mixed(torch.tensor([0, 1, 2**32 - 1]))
    assert tensor.tolist() == HASHED
    assert key_of(3, 7.0) == KEY


def test_the_bits_depend_on_parameter_step_and_element():
    like = torch.empty(1 << 14)
    seen = [random_bits(like, key_of(number, t)) for number in (0, 1) for t in (1.0, 2.0)]
    for k, bits in enumerate(seen):
        for other in seen[:k]:
            assert (bits == other).float().mean() < 1e-3
        ones = torch.stack([(bits >> shift) & 1 for shift in range(32)]).double().mean(1)
        assert ((ones - 0.5).abs() < 6 * 0.5 / 2**7).all()  # six standard deviations
        assert bits.unique().numel() == bits.numel()


@pytest.mark.parametrize("moment", [0, 1, 2])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.25, 0.5, 0.9])
def test_the_mean_is_right(part, moment):
    x = torch.full((1 << 16,), 1.0 + part * 2.0**-7)
    random = random_bits(x, key_of(0, 1.0))
    for sign in (1.0, -1.0):
        rounded = rounded_at_random(sign * x, random, moment).double() * sign
        up = (rounded - 1.0) * 2.0**7
        assert set(up.tolist()) <= {0.0, 1.0}
        deviation = (part * (1 - part) / x.numel()) ** 0.5
        assert abs(up.mean().item() - part) <= 6 * deviation


def test_what_is_no_finite_number_is_kept():
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, -torch.nan, 0.0, -0.0, 3.3e38])
    x = torch.cat([x, torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)])
    for added in (0, 0xFFFF):
        rounded = rounded_at_random(x, torch.full(x.shape, added), 0).float()
        assert torch.equal(rounded.isnan(), x.isnan())
        assert torch.equal(rounded[:2], x[:2]) and same_bits(rounded[4:6], x[4:6])


@on_both
def test_equal_parameters_are_not_rounded_alike(backend):
    """Their place among all parameters counts, whatever their bucket and their group."""
    runs = []
    for others in ([], [torch.ones(3, dtype=torch.float16)]):  # one more bucket
        weights = [torch.ones(1000) for _ in range(3)]
        for weight in (*weights, *others):
            weight.grad = torch.full_like(weight, 0.3)
        first, *rest = weights
        groups = [{**GROUP, "params": [first]}, {**GROUP, "params": [*rest, *others]}]
        state = {}
        step(Kernels(backend, formats=FORMATS["moments"]), groups, state)
        runs.append([state[weight]["exp_avg_sq"] for weight in weights])
    assert all(map(same_bits, *runs))
    a, b, c = runs[0]
    assert not (torch.equal(a, b) or torch.equal(b, c) or torch.equal(a, c))


def test_exp_avg_sq_follows_gradients_that_become_smaller():
    """From 1, with squares of 0.01: to nearest it would be 1 for ever."""
    weight = torch.zeros(256)
    weight.grad = torch.full_like(weight, 0.1)
    state = {weight: {"step": 1, "exp_avg": torch.zeros(256), "exp_avg_sq": torch.ones(256)}}
    kernels = Kernels("native", formats=Formats(False, torch.float32, BF16))
    for _ in range(5000):
        step(kernels, [{**GROUP, "params": [weight]}], state, 0.0)
    found = state[weight]["exp_avg_sq"]
    assert found.dtype == BF16
    assert found.double().mean().item() == pytest.approx(0.0167, rel=0.02)


# -- where a window began -----------------------------------------------------------------------


@on_both
@pytest.mark.parametrize("dtype", DTYPES)
def test_alignment_is_that_of_the_masters(dtype, backend):
    """With starts in fp32, as masters are; the weights would have hidden the difference."""
    weights = make_weights(SIZES, dtype, missing={1})
    state, terms = {}, []
    for weight in weights:
        start = weight.float() + 1e-4 * torch.randn(weight.shape)
        wide = {"master_param": weight.float() * (1.0 + 1e-5)}
        if dtype == torch.float32:
            wide, start = {}, weight + 1e-4
        state[weight] = {"step": 3, **make_state([weight])[weight], **wide, "window_start": start}
        if weight.grad is not None:
            now = wide.get("master_param", weight)
            terms.append((weight.grad.float() * (start - now)).double())
    kernels = Kernels(backend, formats=Formats(True))
    kernels.refresh([{**GROUP, "params": weights}], state)
    found = sum(part.item() for part in kernels.alignment())
    scale = sum(term.abs().sum().item() for term in terms)
    assert found == pytest.approx(sum(term.sum().item() for term in terms), abs=1e-12 * scale)


@on_both
@pytest.mark.parametrize("search", [False, True])
def test_a_window_begins_at_the_masters(search, backend):
    weights, groups, state = in_bf16()
    kernels = Kernels(backend, formats=Formats(True))
    for _ in range(2):  # made, and then written in place or anew
        step(kernels, groups, state, 1e-4)
        before = [state[weight]["master_param"].clone() for weight in weights]
        kernels.refresh(groups, state)
        if search:
            kernels.first_trial(groups, 0.5)
        kernels.prepare_window(state)
        kernels.final_write(groups, 1e-4)
        kernels.commit(state)
        kernels.begin_window(state)
        kernels.release()
        starts = [state[weight]["window_start"] for weight in weights]
        assert all(map(same_bits, starts, before))


def test_alignment_where_only_moments_are_bf16():
    weights = make_weights(SIZES, BF16)
    state = make_window(weights, make_state(weights))
    expected = alignment_of("reference", weights, state=state)
    for backend in ("native", "reference"):
        found = alignment_of(backend, weights, state=state, formats=FORMATS["moments"])
        assert found == pytest.approx(expected, rel=1e-12)
