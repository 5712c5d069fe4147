"""The scalars of the kernels where settings are extreme: decay, eps and betas."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
from kernel_cases import DIRECTIONS, GROUP, make_state, make_weights, same_bits
from small_net import make_closure, make_net
from snapshots import assert_same, everything
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels

BACKEND_NAMES = ["native", "reference"]
ignore_decay = pytest.mark.filterwarnings("ignore:.*weight_decay.*")


def final_scalars(weights, eta, direction="adam", state=None, **group):
    """The bucket after a plain step, with the numbers of that step."""
    if direction != "sgd" and state is None:
        state = make_state(weights)
    groups = [{**GROUP, "direction": direction, **group, "params": weights}]
    kernels = Kernels("reference")
    kernels.refresh(groups, state or {})
    kernels.final_write(groups, eta)
    (bucket,) = kernels.buckets
    return bucket


# -- decay ------------------------------------------------------------------------------------


@ignore_decay
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("lr", "eta", "decay"),
    [(0.5, 2.0, 0.25), (0.5, 2.0, 0.999), (0.5, 2.0, 1.0), (2.0, 3.0, 0.5), (1.0, 1e30, 1.0)],
)
def test_the_decay_in_the_scalars(lr, eta, decay, direction, maximize):
    bucket = final_scalars(
        make_weights([5]), eta, direction, lr=lr, weight_decay=decay, maximize=maximize
    )
    (found,) = bucket.scalars
    x = lr * eta * decay
    sign = math.copysign(1.0, found.size)  # of both, where the gradient counts alone
    if x < 1.0:
        assert found.weight_decay == sign * decay
    else:
        assert found.weight_decay == pytest.approx(sign * x / (1.0 + x) / (lr * eta), rel=1e-12)
    assert 0.0 <= found.size * found.weight_decay < 1.0


@ignore_decay
@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("direction", ["adam", "sgd"])
@pytest.mark.parametrize("searched", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_decay_never_flips_a_weight(backend, direction, searched, maximize):
    """The rest of the step is as it was: with a gradient of zero nothing else moves."""
    weights = [torch.tensor([1.0, -2.0]), torch.tensor([3.0])]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    group = {**GROUP, "direction": direction, "maximize": maximize}
    groups = [
        {**group, "lr": 2.0, "weight_decay": 0.5, "params": weights[:1]},  # x = 6
        {**group, "lr": 1.0, "weight_decay": 0.1, "params": weights[1:]},  # x = 0.6
    ]
    kernels, state = Kernels(backend), {}
    kernels.refresh(groups, state)
    if searched:
        kernels.first_trial(groups, 6.0)
        assert weights[0].tolist() == [1.0, -2.0]  # what is tried has no decay
    kernels.final_write(groups, 6.0)
    assert weights[0].tolist() == pytest.approx([1 / 7, -2 / 7], rel=1e-5)
    assert weights[1].tolist() == pytest.approx([3.0 * 0.4], rel=1e-5)


@ignore_decay
def test_each_unit_has_a_decay_of_its_own():
    weights = [torch.ones(1) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.zeros(1)
    groups = [{**GROUP, "weight_decay": 0.5, "params": [weight]} for weight in weights]
    kernels = Kernels("native")
    kernels.refresh(groups, {})
    kernels.final_write(groups, [4.0, 1.0, 2.0])
    assert [w.item() for w in weights] == pytest.approx([1 / 3, 0.5, 0.5])


@ignore_decay
@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("searched", [False, True])
@pytest.mark.parametrize(("clip", "bound"), [(0.5, 1.0), (1.0, 1.0), (4.0, 4.0)])
def test_lamb_bounds_by_its_largest_ratio_and_keeps_its_ratios(backend, searched, clip, bound):
    """The ratio is that of the decay that was asked for."""
    found = []
    for eta in (1e-3, 2.0):
        weights = [torch.tensor([3.0, -4.0]), torch.tensor([0.5])]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        state = make_state(weights)
        group = {**GROUP, "direction": "lamb", "trust_clip": clip, "weight_decay": 0.75}
        groups = [{**group, "params": weights}]
        kernels = Kernels(backend)
        kernels.refresh(groups, state)
        if searched:
            kernels.first_trial(groups, eta)
        kernels.final_write(groups, eta)
        (bucket,) = kernels.buckets
        found.append((bucket.ratios.clone(), bucket.scalars[0].weight_decay))
    assert same_bits(found[0][0], found[1][0]) and found[0][1] == 0.75
    x = 2.0 * 0.75 * bound
    assert found[1][1] == pytest.approx(x / (1 + x) / (2.0 * bound), rel=1e-12)


@ignore_decay
@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("decay", [0.01, 0.5, 4.0])
def test_lamb_without_a_bound_turns_no_weight_either(backend, decay):
    """Where there is nothing but decay the ratio is 1 / decay, whatever the decay is."""
    weights = [torch.tensor([3.0, -4.0]), torch.tensor([0.5])]
    start = [weight.clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    group = {**GROUP, "direction": "lamb", "trust_clip": None, "weight_decay": decay}
    groups = [{**group, "params": weights}]
    kernels = Kernels(backend)
    kernels.refresh(groups, make_state(weights))
    for bucket in kernels.buckets:  # no momentum either
        for moment in bucket.beside.moments[1]:
            moment.zero_()
    kernels.final_write(groups, 66.0)
    for weight, before in zip(weights, start):
        assert torch.allclose(weight, before / 67.0)


@pytest.mark.parametrize("search_period", [None, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_large_decay_is_warned_of_once(search_period, direction):
    weight = nn.Parameter(torch.ones(3))
    optimizer = FusedSaLSa(
        [weight],
        **{"search_period": search_period, "direction": direction, "weight_decay": 0.6},
        **{"init_step_size": 1.0, "lr": 1.0, "check_replay": False, "max_trials": 1},
        look_back=False,  # else the first move is short
    )
    for group in optimizer.param_groups:
        group.update(located=True, accepted_once=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.step(lambda: 1e-3 * weight.sum())
    (message,) = [str(w.message) for w in seen if "weight_decay" in str(w.message)]
    size = optimizer.step_size if search_period is None else optimizer.last_search.step_size
    assert re.search(r"lr \* step size \* weight_decay is 0\.6", message), message
    assert "lr=1" in message and "step size 1" in message and "weight_decay=0.6" in message
    assert "lower weight_decay" in message and size > 0
    assert seen[0].filename == __file__


@pytest.mark.parametrize(("lr", "decay"), [(1.0, 0.49), (0.5, 0.99), (0.0, 9.0)])
@pytest.mark.filterwarnings("ignore:lr=0")
def test_smaller_decay_is_not(lr, decay):
    weight = nn.Parameter(torch.ones(3))
    optimizer = FusedSaLSa([weight], search_period=None, lr=lr, weight_decay=decay)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(lambda: weight.sum())


def test_the_group_is_named_where_there_are_several():
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = FusedSaLSa(
        [{"params": [weights[0]]}, {"params": [weights[1]], "weight_decay": 3.0}],
        search_period=None,
    )
    with pytest.warns(UserWarning, match=r"parameter group 1.*weight_decay=3\)"):
        optimizer.step(lambda: weights[0].sum() + weights[1].sum())


def test_a_warning_that_is_an_error_changes_nothing():
    net = make_net()
    optimizer = FusedSaLSa(
        net.parameters(), module=net, search_period=None, weight_decay=0.7, backend="native"
    )
    before = everything(net, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="weight_decay"):
            optimizer.step(make_closure(net))
        assert_same(before, everything(net, optimizer))
        optimizer.step(make_closure(net))  # it is said once
    assert optimizer.metrics()["steps"] == 1


@ignore_decay
def test_steps_of_sixty_six_blow_nothing_up():
    weight = nn.Parameter(torch.tensor([1.0, -1.0]))
    optimizer = FusedSaLSa(
        [weight],
        **{"direction": "sgd", "search_period": None, "init_step_size": 66.0},
        weight_decay=5e-2,
    )
    signs = weight.detach().sign()
    for _ in range(20):
        optimizer.step(lambda: 0.0 * weight.sum())
        assert torch.equal(weight.detach().sign(), signs)
    assert weight.abs().max() < 1e-6


# -- eps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("eps", [0.0, 1e-46])
@pytest.mark.parametrize("search_period", [None, (1, 10)])
def test_an_element_without_gradient_and_eps_that_is_nothing(backend, eps, search_period):
    """Rows of an embedding that no batch has used: 0 / 0 is no step, not a number that is none."""
    torch.manual_seed(0)
    embedding = nn.Embedding(6, 4)
    before = embedding.weight.detach().clone()
    optimizer = FusedSaLSa(
        embedding.parameters(),
        **{"eps": eps, "backend": backend, "search_period": search_period},
        init_step_size=1.0 if search_period else 1e-2,
    )
    used, wanted = torch.tensor([1, 3]), torch.tensor([[1.0], [-1.0]])
    for _ in range(200):
        optimizer.step(lambda: (embedding(used) - wanted).square().mean())
    loss = (embedding(used) - wanted).square().mean().item()
    assert optimizer.skipped_steps == 0 and loss < (1e-6 if search_period else 1.0)
    unused = torch.tensor([0, 2, 4, 5])
    assert torch.equal(embedding.weight.detach()[unused], before[unused])


def test_the_ratio_is_named_where_it_is_the_cause():
    weight = nn.Parameter(torch.ones(3))
    optimizer = FusedSaLSa(
        [weight], search_period=None, direction="lamb", trust_clip=10.0, weight_decay=0.08
    )
    with pytest.warns(UserWarning, match=r"largest trust ratio is 0.8 .*, trust ratio 10\)"):
        optimizer.step(lambda: weight.sum())


@pytest.mark.parametrize("eps", [2.0**-126, 1e-8])
def test_larger_eps_is_as_it_is(eps):
    (found,) = final_scalars(make_weights([3]), 0.1, eps=eps).scalars
    assert found.eps == eps


# -- betas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("searching", [False, True])
@pytest.mark.parametrize("direction", ["adam", "lamb"])
@pytest.mark.parametrize(
    ("betas", "which"),
    [((1.0, 0.999), 0), ((0.9, 1.0), 1), ((-0.1, 0.999), 0), ((0.9, 1.5), 1)],
)
def test_betas_that_a_scheduler_has_set_out_of_range(betas, which, direction, searching):
    net = make_net()
    optimizer = FusedSaLSa(
        [{"params": net[0].parameters()}, {"params": net[4].parameters()}],
        **{"module": net, "direction": direction, "search_period": 1 if searching else None},
        init_step_size=1e-2,
    )
    for step in range(3):
        optimizer.step(make_closure(net, step))
    good = optimizer.param_groups[1]["betas"]
    optimizer.param_groups[1]["betas"] = betas
    before = everything(net, optimizer)
    value = re.escape(repr(betas[which]))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"betas\[{which}\] of parameter group 1 is {value}"):
            optimizer.step(make_closure(net))
        assert_same(before, everything(net, optimizer))
    optimizer.param_groups[1]["betas"] = good
    optimizer.step(make_closure(net))
    assert optimizer.metrics()["steps"] == 4


def test_sgd_has_no_betas():
    weight = nn.Parameter(torch.ones(3))
    optimizer = FusedSaLSa([weight], direction="sgd", search_period=None, init_step_size=0.1)
    optimizer.param_groups[0]["betas"] = (1.0, 1.0)
    optimizer.step(lambda: weight.sum())
    assert weight.tolist() == pytest.approx([0.9] * 3)
