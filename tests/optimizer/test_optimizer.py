"""FusedSaLSa as an optimizer of torch: steps, groups, schedulers, what it reports."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from small_net import make_closure, make_net
from snapshots import assert_same, everything

from salsa_fused import FusedSaLSa, SearchResult

BACKENDS = ["native", "reference"]


# -- without a search it is AdamW -------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "backend", "tolerance"),
    [
        (torch.float64, "reference", 1e-12),
        (torch.float32, "reference", 1e-5),
        (torch.float32, "native", 1e-5),
    ],
)
def test_no_search_equals_adamw(dtype, backend, tolerance):
    nets = [make_net(dropout=0.0, norm=False).to(dtype) for _ in range(2)]
    groups = [
        [
            {"params": net[0].parameters(), "lr": 2e-3, "weight_decay": 0.1},
            {"params": [net[4].weight], "betas": (0.8, 0.99), "eps": 1e-6},
            {"params": [net[4].bias]},
        ]
        for net in nets
    ]
    ours = FusedSaLSa(groups[0], lr=1e-3, search_period=None, backend=backend, weight_decay=0.01)
    theirs = torch.optim.AdamW(groups[1], lr=1e-3, weight_decay=0.01)
    for step in range(100):
        for net, optimizer in zip(nets, (ours, theirs)):
            optimizer.zero_grad()
            make_closure(net, step)().backward()
            optimizer.step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters()):
        assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


def test_no_search_scales_by_the_first_step_size():
    weight = torch.ones(3, requires_grad=True)
    optimizer = FusedSaLSa([weight], lr=0.5, init_step_size=0.1, search_period=None)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.95] * 3)
    assert optimizer.last_search is None and not optimizer.search_due


# -- the forms of step ------------------------------------------------------------------------


def train(steps, form, net=None, **keywords):
    net = net or make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, **keywords)
    torch.manual_seed(7)
    losses = []
    for step in range(steps):
        losses.append(form(optimizer, net, step))
    return net, optimizer, losses


def plain_closure(optimizer, net, step):
    return optimizer.step(make_closure(net, step))


def lbfgs_closure(optimizer, net, step):
    evaluate = make_closure(net, step)

    def closure():
        optimizer.zero_grad()
        loss = evaluate()
        loss.backward()
        return loss

    return optimizer.step(closure)


def loss_given(optimizer, net, step):
    closure = make_closure(net, step)
    optimizer.zero_grad()
    with optimizer.first_evaluation():
        loss = closure()
    loss.backward()
    return optimizer.step(closure, loss=loss)


@pytest.mark.parametrize("form", [lbfgs_closure, loss_given])
def test_all_forms_take_the_same_steps(form):
    net, optimizer, losses = train(25, plain_closure)
    other_net, other, other_losses = train(25, form)
    assert losses == other_losses
    assert_same(everything(net, optimizer), everything(other_net, other))


def test_step_returns_the_first_loss_detached():
    net = make_net(dropout=0.0)
    optimizer = FusedSaLSa(net.parameters(), module=net)
    expected = make_closure(net)().item()
    loss = optimizer.step(make_closure(net))
    assert loss.item() == expected
    assert loss.grad_fn is None and not loss.requires_grad
    assert optimizer.last_search.loss == expected


def test_plain_steps_need_no_closure():
    net, optimizer, _ = train(12, plain_closure, search_period=20)
    while not optimizer.search_due:
        make_closure(net)().backward()
        assert optimizer.step() is None
    with pytest.raises(RuntimeError, match="a search is due"):
        optimizer.step()


def test_step_works_for_callers_without_gradients():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    with torch.no_grad():
        optimizer.step(make_closure(net))
    assert net[0].weight.grad is not None


def test_a_loss_of_one_element_is_a_loss():
    net = make_net()
    closure = make_closure(net)
    FusedSaLSa(net.parameters()).step(lambda: closure().reshape(1))


def test_evaluations_per_step():
    calls = 0
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, check_replay=False)
    for step in range(60):
        evaluate = make_closure(net, step)

        def closure(evaluate=evaluate):
            nonlocal calls
            calls += 1
            return evaluate()

        before, due = calls, optimizer.search_due
        optimizer.step(closure)
        assert calls - before == 1 + (optimizer.last_search.trials if due else 0)
    assert calls == 60 + optimizer.metrics()["total_trials"]


def test_the_period_of_searches():
    _, optimizer, _ = train(10, plain_closure)
    assert optimizer.metrics()["searches"] == 10
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, search_period=5)
    due = []
    for step in range(30):
        due.append(optimizer.search_due)
        optimizer.step(make_closure(net, step))
    assert [step for step in range(30) if due[step]] == [*range(10), 14, 19, 24, 29]


def test_plain_steps_keep_the_step_size():
    net, optimizer, _ = train(10, plain_closure, search_period=50)
    found = optimizer.step_size
    for step in range(20):
        optimizer.step(make_closure(net, step))
        assert optimizer.step_size == found


# -- gradients --------------------------------------------------------------------------------


def test_parameters_without_gradient_are_left_alone():
    used, unused = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    frozen = torch.ones(3)
    optimizer = FusedSaLSa([used, unused, frozen])
    optimizer.step(lambda: used.square().sum())
    assert unused.tolist() == frozen.tolist() == [1.0, 1.0, 1.0]
    assert list(optimizer.state) == [used]
    optimizer.step(lambda: used.square().sum() + unused.square().sum())
    assert [optimizer.state[p]["step"] for p in (used, unused)] == [2, 1]


def test_nothing_with_a_gradient_is_a_no_op():
    weight = torch.ones(3, requires_grad=True)
    optimizer = FusedSaLSa([weight], search_period=None)
    before = [dict(group) for group in optimizer.param_groups]
    optimizer.step()
    frozen = torch.ones(3)
    idle = FusedSaLSa([frozen])
    assert idle.step(lambda: frozen.sum()).item() == 3.0
    assert optimizer.param_groups == before and not optimizer.state
    assert not idle.state and idle.metrics()["steps"] == 0


def test_gradients_are_those_of_the_first_evaluation():
    net = make_net(dropout=0.5)
    optimizer = FusedSaLSa(net.parameters(), module=net)
    torch.manual_seed(3)
    twin = make_net(dropout=0.5)
    torch.manual_seed(3)
    make_closure(twin)().backward()
    torch.manual_seed(3)
    optimizer.step(make_closure(net))
    for ours, theirs in zip(net.parameters(), twin.parameters()):
        assert torch.equal(ours.grad, theirs.grad)


def test_zero_size_and_scalar_parameters():
    empty, scalar = torch.zeros(0, 4, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    optimizer = FusedSaLSa([empty, scalar])
    for _ in range(100):
        optimizer.step(lambda: scalar.square() + empty.sum())
    assert abs(scalar.item()) < 0.1


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_mixed_bag_of_parameters(backend):
    torch.manual_seed(0)
    parameters = [
        torch.randn(5, 7),
        torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(7, 5).t(),
        torch.randn(10, 4)[:, 1:3],
        torch.randn(33, dtype=torch.float64),
        torch.randn(65)[1:],
    ]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = FusedSaLSa(parameters, backend=backend)
    optimizer_loss = [optimizer.step(lambda: loss_of(parameters)).item() for _ in range(80)]
    assert optimizer_loss[-1] < 1e-3 * optimizer_loss[0]


def loss_of(parameters):
    return sum(parameter.square().sum() for parameter in parameters).double()


# -- lr is a factor ---------------------------------------------------------------------------


def test_a_common_factor_scales_what_is_applied_and_not_what_is_tried():
    moved = []
    for lr in (1.0, 0.1):
        weight = torch.full((4,), 5.0, dtype=torch.float64, requires_grad=True)
        optimizer = FusedSaLSa([weight], lr=lr)
        optimizer.step(lambda weight=weight: weight.square().sum())
        moved.append((optimizer.step_size, 5.0 - weight[0].item()))
    assert moved[0][0] == moved[1][0]
    assert moved[1][1] == pytest.approx(0.1 * moved[0][1])


def test_schedulers_act_on_the_factor():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 30, total_iters=30)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [30])
    factors = []
    for step in range(60):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step(make_closure(net, step))
        schedule.step()
    assert factors[0] == pytest.approx(1 / 30) and max(factors) == pytest.approx(1.0)
    assert factors[-1] < 0.01


def test_a_factor_of_zero_updates_the_moments_only():
    weight = torch.ones(3, requires_grad=True)
    optimizer = FusedSaLSa([weight])
    optimizer.param_groups[0]["lr"] = 0.0
    assert not optimizer.search_due
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.tolist() == [1.0] * 3
    assert optimizer.state[weight]["step"] == 1
    assert optimizer.state[weight]["exp_avg"].tolist() == pytest.approx([0.1] * 3)
    optimizer.param_groups[0]["lr"] = 1.0
    assert optimizer.search_due


def test_lr_may_be_a_tensor():
    weight = torch.ones(3, requires_grad=True)
    optimizer = FusedSaLSa([weight], lr=torch.tensor(1.0))
    optimizer.step(lambda: weight.square().sum())
    assert weight[0] < 1.0


# -- reports ----------------------------------------------------------------------------------


def test_last_search_and_metrics():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    assert optimizer.last_search is None
    keys = set(optimizer.metrics())
    optimizer.step(make_closure(net))
    last = optimizer.last_search
    assert isinstance(last, SearchResult) and last.outcome == "accepted"
    assert last.step_size == optimizer.step_size == optimizer.param_groups[0]["step_size"]
    assert last.trial_loss < last.loss and last.slope > 0
    metrics = optimizer.metrics()
    assert set(metrics) == keys >= set(SearchResult._fields)
    assert (metrics["steps"], metrics["searches"], metrics["skipped_steps"]) == (1, 1, 0)
    assert all(isinstance(value, (int, float, str)) for value in metrics.values())
    for _ in range(20):
        optimizer.step(make_closure(net))
    before = optimizer.last_search
    while optimizer.search_due:
        before = (optimizer.step(make_closure(net)), optimizer.last_search)[1]
    optimizer.step(make_closure(net))
    assert optimizer.last_search is before  # a plain step leaves it


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("searching", [True, False])
def test_a_loss_that_is_not_finite_skips_the_step(bad, searching):
    net, optimizer, _ = train(12, plain_closure, search_period=20)
    if searching:
        optimizer.param_groups[0]["steps_since_search"] = 30
    before = everything(net, optimizer)
    closure = make_closure(net)
    loss = optimizer.step(lambda: closure() * bad)
    assert not math.isfinite(loss.item())
    assert optimizer.skipped_steps == 1
    last = optimizer.last_search
    assert (last.trials, last.outcome) == (0, "non_finite")
    optimizer.param_groups[0]["skipped_steps"] = 0
    assert_same(before, everything(net, optimizer))
    optimizer.step(closure)
    assert optimizer.metrics()["steps"] == 13


def test_gradients_that_are_not_finite_skip_a_search_step():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    handle = net[0].weight.register_hook(lambda gradient: gradient * math.nan)
    optimizer.step(make_closure(net))
    handle.remove()
    assert optimizer.skipped_steps == 1 and not optimizer.state
    assert all(p.isfinite().all() for p in net.parameters())
    optimizer.step(make_closure(net))
    assert optimizer.last_search.outcome == "accepted"


def test_trials_that_are_never_finite_skip_the_step():
    net, optimizer, _ = train(3, plain_closure)
    before, calls = everything(net, optimizer), 0
    evaluate = make_closure(net)

    def closure():
        nonlocal calls
        calls += 1
        return evaluate() * (1.0 if calls == 1 else math.nan)

    optimizer.step(closure)
    after = everything(net, optimizer)
    assert (calls, optimizer.skipped_steps) == (11, 1)
    assert all(map(torch.equal, before[0], after[0]))
    first = dict(before[1][0])["step_size"] * 2 ** (1 / 20)
    assert optimizer.step_size == pytest.approx(first * 0.7**10)  # below all that was rejected
    assert optimizer.search_due


def test_a_closure_that_does_not_depend_on_the_weights_is_reported_once():
    weight = torch.ones(3, requires_grad=True)
    optimizer = FusedSaLSa([weight], check_replay=False)
    calls = 0

    def rising():
        nonlocal calls
        calls += 1
        return weight.sum() + 100.0 * calls

    weight_before = weight.detach().clone()
    with pytest.warns(UserWarning, match="is the closure a function of the weights alone"):
        optimizer.step(rising)
    assert optimizer.skipped_steps == 1 and optimizer.step_size == 1.0
    assert torch.equal(weight.detach(), weight_before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(rising)
