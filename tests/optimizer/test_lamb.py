"""``direction="lamb"``: a trust ratio for each tensor scales what is tried and applied."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from kernel_cases import GROUP, along, backend_named, make_state, make_weights, run
from small_net import make_closure, make_net
from snapshots import assert_same, everything
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels

BACKENDS_HERE = ["native", "reference"]
on_both = pytest.mark.parametrize("backend", BACKENDS_HERE)
SIZES = [1, 9, 513, 40_000, 7]


def ratios_of(backend, weights, state, **group):
    kernels = Kernels(backend)
    groups = [{**GROUP, "direction": "lamb", "params": weights, **group}]
    kernels.refresh(groups, state)
    kernels._set_scalars(groups, 1.0, trial=False)
    kernels._take_ratios(groups)
    (bucket,) = kernels.buckets
    return bucket.ratios


def expected_ratio(weight, entry, clip, decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """In float64, from the formula."""
    w, g = weight.double(), weight.grad.double()
    t = entry["step"] + 1
    m = beta1 * entry["exp_avg"].double() + (1 - beta1) * g
    v = beta2 * entry["exp_avg_sq"].double() + (1 - beta2) * g * g
    u = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps) + decay * w
    return min(w.norm().item() / u.norm().item(), clip)


# -- the ratios -------------------------------------------------------------------------------


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("clip", "decay"), [(None, 0.0), (None, 0.5), (0.3, 0.1)])
def test_the_formula(backend, dtype, clip, decay):
    weights = make_weights(SIZES, dtype)
    for scale, weight in zip((1.0, 1e-3, 1e3, 0.2, 1e-25), weights):
        weight.mul_(scale)  # the square of the last is 0 in fp32
    state = make_state(weights)
    found = ratios_of(backend, weights, state, trust_clip=clip, weight_decay=decay)
    bound = math.inf if clip is None else clip
    expected = [expected_ratio(w, state[w], bound, decay) for w in weights]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.dtype == torch.float32


@on_both
def test_one_where_a_norm_is_zero(backend):
    weights = make_weights([100, 100, 100])
    weights[0].zero_()
    weights[1].grad.zero_()
    state = {w: {**entry, "exp_avg": torch.zeros(100)} for w, entry in make_state(weights).items()}
    ratios = ratios_of(backend, weights, state, trust_clip=1e-3)
    assert ratios[:2].tolist() == [1.0, 1.0] and ratios[2] == torch.tensor(1e-3)


@on_both
def test_not_a_number_stays_one(backend):
    weights = make_weights([100, 100])
    weights[0].grad[5] = math.nan
    ratios = ratios_of(backend, weights, make_state(weights))
    assert ratios.isnan().tolist() == [True, False]


def test_the_same_bits_whatever_the_number_of_threads():
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            weights = make_weights(SIZES)
            found.append(ratios_of("native", weights, make_state(weights), trust_clip=None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_the_reference_keeps_float64():
    weights = make_weights([100], torch.float64)
    ratios = ratios_of("reference", weights, make_state(weights), trust_clip=None)
    expected = expected_ratio(weights[0], make_state(weights)[weights[0]], math.inf, 0.0)
    assert ratios.tolist() == pytest.approx([expected], rel=1e-14)


@on_both
def test_trials_and_step_are_adams_times_the_ratio(backend):
    """Of the same ratio, that of the weights before the search."""
    make = along("lamb", lambda: (make_weights([1000]), None, None))
    weights, groups, _ = make()
    state = make_state(weights)
    (ratio,) = ratios_of("reference", weights, state, trust_clip=0.01).tolist()
    groups[0]["trust_clip"] = 0.01
    lamb, slope = run(backend, weights, groups, state, eta=1.0)
    weights, groups, _ = along("adam", lambda: (make_weights([1000]), None, None))()
    adam, adams_slope = run(backend, weights, groups, make_state(weights), eta=ratio)
    assert slope == pytest.approx(ratio * adams_slope, rel=1e-6)
    for ours, theirs in zip(lamb[:3], adam[:3]):
        for a, b in zip(ours, theirs):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


# -- the optimizer ----------------------------------------------------------------------------


def build(seed=0, **keywords):
    net = make_net(seed, norm=False, dropout=0.0)
    keywords = {"check_replay": False, "direction": "lamb", "weight_decay": 0.01, **keywords}
    return net, FusedSaLSa(net.parameters(), **keywords)


def train(net, optimizer, first, last):
    return [optimizer.step(make_closure(net, step)).item() for step in range(first, last)]


@pytest.mark.parametrize("trust_clip", [None, 0.5])
def test_without_a_search_it_is_lamb(trust_clip):
    """The published update, written out."""
    weight = nn.Parameter(torch.linspace(-1.0, 2.0, 50, dtype=torch.float64))
    keywords = {"direction": "lamb", "trust_clip": trust_clip, "weight_decay": 0.1, "eps": 1e-6}
    optimizer = FusedSaLSa([weight], search_period=None, init_step_size=0.05, **keywords)
    w, m, v = weight.detach().clone(), torch.zeros(50).double(), torch.zeros(50).double()
    for t in range(1, 8):
        g = torch.cos(3.0 * w + t)
        weight.grad = g.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-6) + 0.1 * w
        ratio = w.norm() / u.norm()
        w = w - 0.05 * (ratio if trust_clip is None else min(ratio, trust_clip)) * u
        assert torch.allclose(weight, w, rtol=1e-12)


@on_both
@pytest.mark.parametrize("keywords", [{}, {"trust_clip": None}, {"units": "groups"}])
def test_it_trains(backend, keywords):
    net, optimizer = build(backend=backend, look_back=False, **keywords)
    losses = train(net, optimizer, 0, 60)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_ratios_are_made_once_in_a_step(monkeypatch):
    made = []
    backend = backend_named("native")
    call = backend.trust_ratios
    monkeypatch.setattr(
        backend, "trust_ratios", lambda work, clip: made.append(clip) or call(work, clip)
    )
    net, optimizer = build(trust_clip=None, c=0.9, growth=3.0)
    for step in range(20):
        made.clear()
        train(net, optimizer, step, step + 1)
        assert made == [math.inf]
    assert optimizer.param_groups[0]["total_trials"] > 30
    assert all(bucket.ratios is None for bucket in optimizer._kernels.buckets)


def test_an_exception_at_a_trial_undoes_it():
    net, optimizer = build()
    train(net, optimizer, 0, 5)
    before = everything(net, optimizer)
    evaluate = make_closure(net, 5)

    def closure():
        if not torch.is_grad_enabled():
            raise RuntimeError("mine")
        return evaluate()

    with pytest.raises(RuntimeError, match="mine"):
        optimizer.step(closure)
    assert_same(before, everything(net, optimizer))
    assert all(bucket.ratios is None for bucket in optimizer._kernels.buckets)


def test_a_loaded_run_continues_bit_for_bit():
    net, optimizer = build(trust_clip=0.2)
    train(net, optimizer, 0, 13)
    other_net, other = build(seed=99, direction="adam")
    other_net.load_state_dict(net.state_dict())
    with pytest.warns(UserWarning, match="replaces settings"):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    group = other.param_groups[0]
    assert (group["direction"], group["trust_clip"]) == ("lamb", 0.2)
    train(net, optimizer, 13, 30)
    train(other_net, other, 13, 30)
    assert_same(everything(net, optimizer), everything(other_net, other))


def test_the_state_of_adam_is_taken_over():
    net, optimizer = build()
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3)
    make_closure(net)().backward()
    adam.step()
    optimizer.load_state_dict(adam.state_dict())
    assert all(entry["step"] == 1 for entry in optimizer.state.values())
    train(net, optimizer, 0, 3)


def test_maximize():
    net, optimizer = build(maximize=True)
    evaluate = make_closure(net)
    values = [optimizer.step(lambda: -evaluate()).item() for _ in range(30)]
    assert values[-1] > values[0]


def test_a_parameter_without_gradient_stays():
    weights = [nn.Parameter(torch.ones(4)) for _ in range(3)]
    optimizer = FusedSaLSa(weights, direction="lamb", weight_decay=0.1)
    for step in range(15):
        used = weights if step % 3 else weights[:2]
        before = weights[2].detach().clone()
        optimizer.step(lambda used=used: sum((w - 0.3).square().sum() for w in used))
        assert torch.equal(before, weights[2].detach()) == (step % 3 == 0)
