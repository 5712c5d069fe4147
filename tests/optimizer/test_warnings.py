"""What keeps training from working is said, once."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from small_net import make_batch, make_closure, make_net
from torch import nn

from salsa_fused import FusedSaLSa, settings
from salsa_fused.schedules import as_factor


def said_by(run, *arguments):
    """The salsa_fused warnings of a run."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(*arguments)
    return [str(w.message) for w in said if issubclass(w.category, UserWarning)]


# -- searches that learn nothing --------------------------------------------------------------


def repeat(optimizer, closure, times):
    for _ in range(times):
        optimizer.step(closure)


@pytest.mark.parametrize("check_replay", [True, False])
@pytest.mark.parametrize("keywords", [{}, settings.PAPER, {"direction": "sgd"}])
def test_the_model_outside_of_the_closure(keywords, check_replay):
    """LBFGS' most common mistake: `prediction = model(x)` before, the loss in the closure."""
    net = make_net(norm=False, dropout=0.0)
    x, y = make_batch()
    optimizer = FusedSaLSa(net.parameters(), check_replay=check_replay, **keywords)

    def run():
        for _ in range(25):
            prediction = net(x)
            optimizer.step(lambda p=prediction: (p - y).square().mean())

    found = said_by(run)
    assert any("called outside of the closure" in text for text in found)
    assert len(found) == len(set(found)) <= 3


def test_a_closure_that_puts_weights_back():
    weight = torch.ones(4, requires_grad=True)
    start = weight.detach().clone()
    optimizer = FusedSaLSa([weight], check_replay=False)

    def closure():
        weight.data.copy_(start)
        return weight.square().sum()

    (found,) = said_by(repeat, optimizer, closure, 30)
    assert "10 searches in a row" in found and "puts weights back" in found


def test_a_large_constant():
    """Of a loss of 1e7, fp32 resolves 1."""
    weight = torch.full((4,), 0.1, requires_grad=True)
    optimizer = FusedSaLSa([weight], check_replay=False)
    (found,) = said_by(repeat, optimizer, lambda: weight.square().sum() + 1e7, 30)
    assert "large constant" in found


def test_zeroed_gradients():
    net = make_net(norm=False)
    for parameter in net.parameters():
        parameter.register_hook(torch.zeros_like)
    optimizer = FusedSaLSa(net.parameters())
    (found,) = said_by(repeat, optimizer, make_closure(net), 30)
    assert "gradients were exactly 0" in found


def test_a_generator_that_died():
    """Saturated after one step, as a GAN's: its gradient is exactly 0 from then on."""
    weight = torch.full((4,), 3.0, requires_grad=True)
    optimizer = FusedSaLSa([weight], check_replay=False)
    dead = False

    def closure():
        return weight.clamp(100.0, 101.0).sum() if dead else weight.square().sum()

    repeat(optimizer, closure, 3)
    dead = True
    (found,) = said_by(repeat, optimizer, closure, 100)
    assert "saturated or dead" in found


def test_nine_are_not_enough():
    weight = torch.full((4,), 0.1, requires_grad=True)
    optimizer = FusedSaLSa([weight], check_replay=False)
    assert not said_by(repeat, optimizer, lambda: weight.square().sum() + 1e7, 9)
    assert said_by(repeat, optimizer, lambda: weight.square().sum() + 1e7, 1)


def test_a_copy_does_not_say_it_again():
    weight = torch.full((4,), 0.1, requires_grad=True)
    optimizer = FusedSaLSa([weight], check_replay=False)
    assert said_by(repeat, optimizer, lambda: weight.square().sum() + 1e7, 10)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (other,) = copied.param_groups[0]["params"]
        assert not said_by(repeat, copied, lambda o=other: o.square().sum() + 1e7, 30)


# -- steps that are skipped -------------------------------------------------------------------


DOMAINS = {  # functions with a barrier, that a step of momentum leaves for ever
    "x - log x": lambda x: (x - x.log()).sum(),
    "x log x": lambda x: (x * x.log()).sum(),
    "barrier": lambda x: (x - 1e-3 * x.log()).sum(),
    "sqrt": lambda x: (x - x.sqrt()).sum(),
}


@pytest.mark.parametrize("keywords", [{}, settings.PAPER, {"direction": "lamb"}])
@pytest.mark.parametrize("name", DOMAINS)
def test_a_run_that_dies_says_so(name, keywords):
    weight = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    optimizer = FusedSaLSa([weight], check_replay=False, **keywords)
    found = []
    for _ in range(300):
        found += said_by(optimizer.step, lambda: DOMAINS[name](weight))
        if optimizer._trouble.skipped >= 10:
            break
    if optimizer.skipped_steps >= 10:
        (text,) = found
        assert "10 steps in a row were skipped" in text and "domain" in text
    else:
        assert torch.isfinite(weight).all() and optimizer.skipped_steps == 0


@pytest.mark.parametrize("search_period", [(1, 10), None])
def test_weights_that_are_not_finite_are_named(search_period):
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.named_parameters(), search_period=search_period)
    with torch.no_grad():
        net[4].weight[0, 0] = math.nan
    (found,) = said_by(repeat, optimizer, make_closure(net), 12)
    assert "parameter '4.weight'" in found and "is not finite any more" in found


def test_gradients_that_are_not_finite_are_named():
    weight = torch.ones(3, requires_grad=True)
    other = torch.ones(3, requires_grad=True)
    optimizer = FusedSaLSa([("w", weight), ("v", other)])
    (found,) = said_by(
        repeat, optimizer, lambda: (weight - 1.0).abs().sqrt().sum() + other.sum() + 1.0, 12
    )
    assert "the gradient of parameter 'w'" in found


def test_data_that_are_not_finite():
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters(), check_replay=False)
    evaluate = make_closure(net)
    (found,) = said_by(repeat, optimizer, lambda: evaluate() * math.nan, 12)
    assert "the loss is nan" in found and "Do the inputs hold NaN" in found


def test_trials_that_are_always_worse():
    weight = torch.ones(3, requires_grad=True)
    optimizer = FusedSaLSa([weight], check_replay=False)
    repeat(optimizer, lambda: weight.square().sum(), 3)

    def closure():
        return weight.square().sum() + 10.0 * optimizer.in_trial

    (found,) = said_by(repeat, optimizer, closure, 40)
    assert "the loss fell at no step size" in found


def test_skips_now_and_then_are_no_trouble():
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters())

    def run():
        for step in range(60):
            evaluate, bad = make_closure(net, step), step % 12 < 9
            optimizer.step(lambda e=evaluate, b=bad: e() * (math.nan if b else 1.0))

    assert not said_by(run)


# -- learning rates ---------------------------------------------------------------------------


def steps(optimizer, net, n, each=lambda step: None):
    for step in range(n):
        each(step)
        optimizer.step(make_closure(net, step))


LR = "is a factor on the step size"


def writing(rate):
    def run(net, optimizer, n):
        def write(step):
            for group in optimizer.param_groups:
                group["lr"] = rate(step)

        steps(optimizer, net, n, write)

    return run


@pytest.mark.parametrize(
    "rate",
    [
        lambda step: 1e-3,
        lambda step: 6e-4 * (1.0 - step / 100),
        lambda step: 1e-3 * min(1.0, (step + 1) / 10) * (1.0 - step / 100),
        lambda step: torch.tensor(3e-4),
        lambda step: 6e-4 * min(1.0, (step + 1) / 2000),
    ],
)
def test_an_absolute_learning_rate_in_the_groups(rate):
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters())
    (found,) = said_by(writing(rate), net, optimizer, 20)
    assert LR in found and "as_factor" in found


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-3, total_steps=100),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=100),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, base_lr=1e-4, max_lr=1e-2),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1e-3),
    ],
)
def test_a_scheduler_with_absolute_values(make):
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters())
    scheduler = make(optimizer)
    found = said_by(
        steps, optimizer, net, 250, lambda step: step and step < 99 and scheduler.step()
    )
    assert [LR in text for text in found] == [True]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=100),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=10_000),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 10_000)),
        lambda o: as_factor(torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-3, total_steps=100)),
        lambda o: as_factor(torch.optim.lr_scheduler.CyclicLR(o, base_lr=1e-5, max_lr=1e-2)),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1e-3, total_iters=60),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1e-3, total_iters=2000),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: step / 50),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 99),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    ],
)
def test_factors_and_warm_ups_are_right(make):
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters())
    scheduler = make(optimizer)
    assert not said_by(steps, optimizer, net, 120, lambda step: 0 < step < 99 and scheduler.step())


@pytest.mark.parametrize(
    "rate",
    [
        lambda step: min(1.0, step / 200),
        lambda step: min(1.0, step / 2000),
        lambda step: min(1.0, 1e-3 * 1.03**step),
        lambda step: as_factor(6e-4)(6e-4 * min(1.0, (step + 1) / 100_000)),
    ],
)
def test_a_warm_up_written_by_hand(rate):
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters())
    assert not said_by(writing(rate), net, optimizer, 120)


def test_without_a_search_lr_is_a_learning_rate():
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters(), lr=1e-3, search_period=None)
    assert not said_by(writing(lambda step: 1e-4), net, optimizer, 60)


def test_the_constructors_warning_is_enough():
    net = make_net(norm=False)
    with pytest.warns(UserWarning, match=LR):
        optimizer = FusedSaLSa(net.parameters(), lr=1e-3)
    assert not said_by(steps, optimizer, net, 60)


def test_a_run_that_goes_on_at_the_end_of_its_schedule():
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters())
    steps(optimizer, net, 210)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["lr"] = 1e-3
    resumed = FusedSaLSa(net.parameters())
    resumed.load_state_dict(saved)
    assert not said_by(steps, resumed, net, 20)


def test_a_learning_rate_after_a_run_was_resumed():
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters())
    steps(optimizer, net, 210)
    resumed = FusedSaLSa(net.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    (found,) = said_by(writing(lambda step: 1e-3), net, resumed, 20)
    assert LR in found


def test_a_frozen_head_and_a_small_factor():
    """One group's small factor is no mistake where another's is 1."""
    net = make_net(norm=False)
    groups = [{"params": net[0].parameters(), "lr": 1e-3}, {"params": net[4].parameters()}]
    assert not said_by(steps, FusedSaLSa(groups), net, 30)


def test_the_first_search_that_gives_up_is_reported_with_the_recipe():
    net = nn.Linear(6, 1)
    optimizer = FusedSaLSa(net.parameters(), check_replay=False)
    loss = net(torch.ones(2, 6)).square().mean()
    loss.backward()
    found = said_by(lambda: optimizer.step(lambda: loss.detach() + 10.0, loss=loss))
    assert len(found) == 1 and "first_evaluation" in found[0]
