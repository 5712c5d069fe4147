"""``direction="sgd"``: the gradient is tried and applied, and nothing is remembered of a weight."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from kernel_cases import backend_named, same_bits
from small_net import make_closure, make_net
from snapshots import assert_same, everything
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import kernels

BACKENDS_HERE = ["native", "reference"]
on_both = pytest.mark.parametrize("backend", BACKENDS_HERE)


def build(groups=None, **keywords):
    net = make_net(norm=False, dropout=0.0)
    parameters = list(net.parameters())
    if groups is not None:
        groups = [{"params": parameters[:2], **groups[0]}, {"params": parameters[2:], **groups[1]}]
    keywords = {"check_replay": False, "direction": "sgd", **keywords}
    return net, FusedSaLSa(groups or parameters, **keywords)


def train(net, optimizer, first, last):
    for step in range(first, last):
        optimizer.step(make_closure(net, step))


@pytest.fixture
def writes(monkeypatch):
    """Names of the kernels that ran, in order."""
    ran = []
    for name in BACKENDS_HERE:
        for kernel in ("first_trial", "next_trial", "step"):
            call = getattr(backend_named(name), kernel)

            def spy(work, call=call, kernel=kernel):
                ran.append(kernel)
                return call(work)

            monkeypatch.setattr(backend_named(name), kernel, spy)
    return ran


# -- the step ---------------------------------------------------------------------------------


@pytest.mark.parametrize("maximize", [False, True])
def test_a_plain_step_is_torchs_sgd(maximize):
    ours, theirs = (nn.Parameter(torch.linspace(-1.0, 1.0, 50).double()) for _ in range(2))
    optimizer = FusedSaLSa(
        [ours], direction="sgd", search_period=None, init_step_size=0.1, maximize=maximize
    )
    sgd = torch.optim.SGD([theirs], lr=0.1, maximize=maximize)
    for step in range(5):
        for parameter in (ours, theirs):
            parameter.grad = torch.cos(parameter.detach() + step)
        optimizer.step()
        sgd.step()
        assert torch.allclose(ours, theirs, rtol=1e-14)
    assert not optimizer.state


def test_the_slope_is_the_squared_norm_and_the_trial_goes_along_the_gradient():
    parameter = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
    optimizer = FusedSaLSa([parameter], direction="sgd", init_step_size=1e-3)
    trials = []

    def closure():
        trials.append(parameter.detach().clone())
        return 0.5 * parameter.square().sum()

    optimizer.step(closure)
    assert optimizer.last_search.slope == 25.0
    moved = torch.stack(trials[2:]) - trials[0]  # [1] checks the replay
    assert torch.allclose(moved[:, 0] * -4.0, moved[:, 1] * 3.0)


def test_beta1_beta2_and_eps_count_for_nothing():
    final = []
    for keywords in ({}, {"betas": (0.5, 0.7, 0.99), "eps": 1.0}):
        net, optimizer = build(**keywords)
        train(net, optimizer, 0, 20)
        final.append([p.detach().clone() for p in net.parameters()])
    assert all(map(torch.equal, *final))


# -- the accepted trial is the step -----------------------------------------------------------


@on_both
def test_no_second_write_where_applied_and_tried_agree(backend, writes):
    net, optimizer = build(backend=backend, init_step_size=1e-3)
    for step in range(30):
        writes.clear()
        due = optimizer.search_due
        located = optimizer.param_groups[0]["located"]
        optimizer.step(make_closure(net, step))
        last = optimizer.last_search
        if not due:
            assert writes == ["step"]
        elif located:
            assert last.outcome == "accepted"
            assert writes == ["first_trial", *["next_trial"] * (last.trials - 1)]
        else:  # a doubling too much came after the accepted trial
            assert writes[-1] == "step"


@on_both
@pytest.mark.parametrize(
    ("groups", "keywords", "second"),
    [
        (None, {"weight_decay": 0.01}, True),
        (None, {"lr": 0.5}, True),
        (({"lr": 0.25}, {"lr": 1.0}), {}, False),
        (({"lr": 0.25}, {"lr": 2.0}), {}, True),
        (({"weight_decay": 0.1}, {}), {}, True),
    ],
)
def test_a_second_write_where_they_do_not(groups, keywords, second, backend, writes):
    net, optimizer = build(groups, backend=backend, search_period=1, **keywords)
    train(net, optimizer, 0, 10)
    writes.clear()
    train(net, optimizer, 10, 11)
    assert optimizer.last_search.outcome == "accepted"
    assert (writes[-1] == "step") == second


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_write_would_have_written_the_same(backend, dtype, monkeypatch):
    runs = []
    for always in (False, True):
        net, optimizer = build(backend=backend)
        net.to(dtype)
        if always:
            monkeypatch.setattr(kernels, "_stands_at_the_step", lambda *_: False)
        train(net, optimizer, 0, 40)
        runs.append([p.detach().clone() for p in net.parameters()])
    assert all(map(same_bits, *runs))


def test_a_weight_that_the_closure_moved_is_written():
    """What it holds then is the closure's; the step goes from the saved weights."""
    runs = []
    for moving in (False, True):
        net, optimizer = build()
        for step in range(20):
            evaluate = make_closure(net, step)

            def closure(evaluate=evaluate, net=net, moving=moving):
                loss = evaluate()
                if moving and not torch.is_grad_enabled():
                    for p in net.parameters():
                        p.data = torch.zeros_like(p)
                return loss

            optimizer.step(closure)
        runs.append([p.detach().clone() for p in net.parameters()])
    assert all(map(torch.equal, *runs))


def test_an_exception_undoes_the_trial():
    net, optimizer = build(search_period=1)
    train(net, optimizer, 0, 12)
    before = everything(net, optimizer)
    evaluate, calls = make_closure(net, 12), 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("mine")
        return evaluate()

    with pytest.raises(RuntimeError, match="mine"):
        optimizer.step(closure)
    assert_same(before, everything(net, optimizer))


# -- state ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copy_of",
    [
        copy.deepcopy,
        lambda pair: pickle.loads(pickle.dumps(pair)),
        lambda pair: _loaded(*pair),
    ],
)
def test_a_copied_run_continues_bit_for_bit(copy_of):
    net, optimizer = build(weight_decay=0.01)
    train(net, optimizer, 0, 13)
    assert optimizer.state_dict()["state"] == {}
    other_net, other = copy_of((net, optimizer))
    train(net, optimizer, 13, 30)
    train(other_net, other, 13, 30)
    assert_same(everything(net, optimizer), everything(other_net, other))


def _loaded(net, optimizer):
    other_net, other = build()
    other_net.load_state_dict(net.state_dict())
    other.load_state_dict(optimizer.state_dict())
    return other_net, other


def test_the_direction_of_a_checkpoint_wins():
    net, optimizer = build()
    train(net, optimizer, 0, 5)
    adam_net, adam = build(direction="adam")
    train(adam_net, adam, 0, 5)
    saved, adams = copy.deepcopy((optimizer.state_dict(), adam.state_dict()))
    with pytest.warns(UserWarning, match="replaces settings"):
        adam.load_state_dict(saved)
    with pytest.warns(UserWarning, match="replaces settings"):
        optimizer.load_state_dict(adams)
    assert adam.param_groups[0]["direction"] == "sgd" and not adam.state
    assert optimizer.param_groups[0]["direction"] == "adam" and len(optimizer.state) == 4
    train(adam_net, adam, 5, 15)
    train(net, optimizer, 5, 15)
    assert not adam.state and optimizer.state[next(net.parameters())]["step"] == 15


@pytest.mark.parametrize("theirs", [torch.optim.Adam, torch.optim.SGD])
def test_the_state_of_torchs_optimizers_is_dropped(theirs):
    net, optimizer = build()
    keywords = {"momentum": 0.9} if theirs is torch.optim.SGD else {}
    other = theirs(net.parameters(), lr=1e-3, **keywords)
    make_closure(net)().backward()
    other.step()
    with pytest.warns(UserWarning, match=r'does not use with direction="sgd": dropped'):
        optimizer.load_state_dict(other.state_dict())
    assert not optimizer.state and optimizer.param_groups[0]["direction"] == "sgd"
    train(net, optimizer, 0, 3)


def test_zero_size_parameters_have_no_state():
    weight, empty = (torch.ones(n, requires_grad=True) for n in (3, 0))
    optimizer = FusedSaLSa([weight, empty], direction="sgd")
    optimizer.step(lambda: weight.square().sum() + empty.sum())
    assert not optimizer.state


def test_a_parameter_without_gradient_stays():
    weights = [nn.Parameter(torch.ones(4)) for _ in range(3)]
    optimizer = FusedSaLSa(weights, direction="sgd", weight_decay=0.1)
    for step in range(15):
        used = weights if step % 3 else weights[:2]
        before = weights[2].detach().clone()
        optimizer.step(lambda used=used: sum(w.square().sum() for w in used))
        assert torch.equal(before, weights[2].detach()) == (step % 3 == 0)


@pytest.mark.parametrize("units", ["all", "groups"])
def test_a_distributed_checkpoint_is_no_step(units):
    """It takes a step with lr 0 wherever there is no state, to have some."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    net, optimizer = build(units=units)
    train(net, optimizer, 0, 14)
    optimizer.zero_grad()
    before = copy.deepcopy(optimizer.state_dict()["param_groups"])
    saved = get_optimizer_state_dict(net, optimizer)
    assert optimizer.state_dict()["param_groups"] == before
    assert saved["param_groups"][0]["steps"] == before[0]["steps"] == 14
