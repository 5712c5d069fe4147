"""A script's learning rates as factors: the schedule is the same, divided by its peak."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from small_net import make_closure, make_net
from torch.optim import lr_scheduler as schedulers

import salsa_fused
from salsa_fused import FusedSaLSa
from salsa_fused.factors import Factor
from salsa_fused.schedules import AdaptiveFineTuning, as_factor

pytestmark = pytest.mark.filterwarnings(
    "ignore:Detected call of `lr_scheduler",
    "ignore:Seems like `optimizer.step",
    "ignore:.*is a factor on",
)

STEPS = 30
PEAK = 1e-3


def warm_up_and_cosine(o):
    first = schedulers.LinearLR(o, 0.1, total_iters=5)
    second = schedulers.CosineAnnealingLR(o, T_max=20, eta_min=1e-5)
    return schedulers.SequentialLR(o, [first, second], milestones=[5])


def chained(o):
    first = schedulers.ConstantLR(o, factor=0.1, total_iters=4)
    return schedulers.ChainedScheduler([first, schedulers.ExponentialLR(o, gamma=0.9)])


def cycles(o):
    first = schedulers.OneCycleLR(o, max_lr=PEAK, total_steps=15)
    second = schedulers.OneCycleLR(o, max_lr=PEAK, total_steps=30)
    return schedulers.SequentialLR(o, [first, second], milestones=[14])


SCHEDULES = {
    "one cycle": lambda o: schedulers.OneCycleLR(o, max_lr=PEAK, total_steps=STEPS + 1),
    "three phases": lambda o: schedulers.OneCycleLR(
        o, max_lr=PEAK, total_steps=STEPS + 1, anneal_strategy="linear", three_phase=True
    ),
    "cyclic": lambda o: schedulers.CyclicLR(o, 1e-5, PEAK, step_size_up=4),
    "shrinking cycles": lambda o: schedulers.CyclicLR(
        o, 1e-5, PEAK, step_size_up=4, mode="exp_range", gamma=0.9
    ),
    "lambda": lambda o: schedulers.LambdaLR(o, lambda epoch: 0.95**epoch),
    "lambda of numpy": lambda o: schedulers.LambdaLR(o, lambda epoch: np.exp(-0.1 * epoch)),
    "multiplicative": lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.95),
    "step": lambda o: schedulers.StepLR(o, step_size=7, gamma=0.3),
    "multi-step": lambda o: schedulers.MultiStepLR(o, milestones=[3, 4, 20]),
    "constant": lambda o: schedulers.ConstantLR(o, factor=0.3),
    "linear": lambda o: schedulers.LinearLR(o, total_iters=11),
    "exponential": lambda o: schedulers.ExponentialLR(o, gamma=0.9),
    "polynomial": lambda o: schedulers.PolynomialLR(o, total_iters=20, power=2.0),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, T_max=9, eta_min=1e-5),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2, eta_min=1e-5),
    "sequential": warm_up_and_cosine,
    "chained": chained,
    "sequence of cycles": cycles,
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1, min_lr=1e-6),
}


def one_group():
    return [{"params": [torch.ones(2, requires_grad=True)], "lr": PEAK}]


def two_groups():
    return [
        {"params": [torch.ones(2, requires_grad=True)], "lr": lr, "weight_decay": decay}
        for lr, decay in ((PEAK, 0.1), (PEAK / 3, 0.0))
    ]


def tensor():
    return [{"params": [torch.ones(2, requires_grad=True)], "lr": torch.tensor(PEAK)}]


def shared_tensor():
    lr = torch.tensor(PEAK)
    return [{"params": [torch.ones(2, requires_grad=True)], "lr": lr} for _ in range(2)]


GROUPS = [one_group, two_groups, tensor, shared_tensor]


def advance(scheduler, step):
    """One step, with the loss of an epoch for those that ask for one."""
    if isinstance(scheduler, schedulers.ReduceLROnPlateau):
        scheduler.step(1.0 + (step % 5 == 0))
    else:
        scheduler.step()


def look(optimizer, divided_by=1.0):
    def number(value):
        return float(value) / divided_by

    return [
        (
            float(torch.tensor(number(group["lr"])))
            if isinstance(group["lr"], torch.Tensor)
            else number(group["lr"]),
            group["betas"],
        )
        for group in optimizer.param_groups
    ]


def build(groups, schedule, *, factored):
    optimizer = FusedSaLSa(groups())
    scheduler = SCHEDULES[schedule](optimizer)
    return optimizer, as_factor(scheduler) if factored else scheduler


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- the schedule -----------------------------------------------------------------------------


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_divided_by_its_peak(groups, schedule):
    """Bit for bit; `get_last_lr` and what is cycled beside are as without it."""
    optimizer, scheduler = build(groups, schedule, factored=True)
    twin, plain = build(groups, schedule, factored=False)
    assert isinstance(scheduler, type(plain)) and scheduler.peak_lr == pytest.approx(PEAK, 1e-7)
    seen = []
    for step in range(STEPS):
        assert look(optimizer) == look(twin, divided_by=scheduler.peak_lr)
        assert list(map(float, scheduler.get_last_lr())) == list(map(float, plain.get_last_lr()))
        seen.append(float(optimizer.param_groups[0]["lr"]))
        advance(scheduler, step)
        advance(plain, step)
    assert len(set(seen)) > 1 and max(seen) < 1.0 + 1e-6
    if schedule not in ("three phases", "shrinking cycles", "chained"):  # they do not reach it
        assert max(seen) == pytest.approx(1.0, abs=0.02)


def test_one_cycle():
    optimizer = FusedSaLSa(make_net().parameters())
    scheduler = as_factor(schedulers.OneCycleLR(optimizer, max_lr=1e-3, total_steps=100))
    (group,) = optimizer.param_groups
    factors, betas = [], []
    for _ in range(99):
        factors.append(group["lr"])
        betas.append(group["betas"][0])
        scheduler.step()
    assert factors[0] == pytest.approx(0.04) and max(factors) == 1.0
    assert group["lr"] == pytest.approx(4e-6)
    assert max(betas) == 0.95 and min(betas) == pytest.approx(0.85)


def test_training_is_as_with_a_schedule_of_factors():
    runs = []
    for factored in (False, True):
        net = make_net()
        optimizer = FusedSaLSa(net.parameters(), module=net)
        peak = 1e-3 if factored else 1.0
        scheduler = schedulers.OneCycleLR(optimizer, max_lr=peak, total_steps=60)
        scheduler = as_factor(scheduler) if factored else scheduler
        losses = []
        for step in range(60):
            losses.append(optimizer.step(make_closure(net, step % 4)).item())
            scheduler.step()
        runs.append(losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


def test_a_peak_of_ones_own():
    """Where the function returns learning rates, nothing else says which is the largest."""
    optimizer = FusedSaLSa(make_net().parameters())
    rates = [2e-4 * min(1.0, (k + 1) / 5) for k in range(10)]
    scheduler = as_factor(schedulers.LambdaLR(optimizer, lambda k: rates[k]), peak=2e-4)
    for k in range(9):
        assert optimizer.param_groups[0]["lr"] == rates[k] / 2e-4
        scheduler.step()


def test_the_epoch_as_an_argument():
    optimizer, scheduler = build(two_groups, "restarts", factored=True)
    twin, plain = build(two_groups, "restarts", factored=False)
    for epoch in (0.3, 1.7, 4.0):
        scheduler.step(epoch)
        plain.step(epoch)
        assert look(optimizer) == look(twin, divided_by=PEAK)


def test_what_others_do_to_the_factor_stays():
    """A scheduler beside it, one that multiplies, needs no factors: it works on them."""
    optimizer, scheduler = build(two_groups, "exponential", factored=True)
    halving = schedulers.StepLR(optimizer, step_size=2, gamma=0.5)
    for step in range(6):
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([0.9**step * 0.5 ** (step // 2) / k for k in (1, 3)])
        scheduler.step()
        halving.step()


def test_a_group_that_is_added_later():
    optimizer, scheduler = build(one_group, "exponential", factored=True)
    scheduler.step()
    new = {"params": [torch.ones(2, requires_grad=True)], "lr": 0.5, "initial_lr": PEAK}
    optimizer.add_param_group(new)
    scheduler.step()
    found = [group["lr"] for group in optimizer.param_groups]
    assert found == pytest.approx([0.81, 0.45])


def test_a_step_that_raises_leaves_factors():
    optimizer, scheduler = build(one_group, "one cycle", factored=True)
    for _ in range(STEPS + 1):
        scheduler.step()
    before = look(optimizer)
    for _ in range(3):
        with pytest.raises(ValueError, match="total steps"):
            scheduler.step()
        assert look(optimizer) == before


def test_adaptive_fine_tuning_is_a_factor_already():
    optimizer = FusedSaLSa(make_net().parameters())
    scheduler = as_factor(AdaptiveFineTuning(optimizer, 4, warmup=1))
    for k in (1, 2, 3, 4, 4):
        assert optimizer.param_groups[0]["lr"] == k / 4
        scheduler.step()


@pytest.mark.parametrize("schedule", ["sequential", "chained", "plateau"])
def test_the_peak_of_a_scheduler_whose_parts_torch_does_not_tell(schedule, monkeypatch):
    monkeypatch.setattr(salsa_fused.factors, "parts_of", lambda scheduler: [])
    optimizer, scheduler = build(two_groups, schedule, factored=True)
    assert scheduler.peak_lr == PEAK
    before = optimizer.param_groups[1]["lr"]
    assert before == scheduler.get_last_lr()[1] / PEAK


# -- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["optimizer first", "scheduler first", "then as_factor"])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_schedule_continues_bit_for_bit(schedule, groups, order):
    optimizer, scheduler = build(groups, schedule, factored=True)
    for step in range(11):
        advance(scheduler, step)
    saved = through_a_file(optimizer.state_dict())
    state = scheduler.state_dict()
    if "lambda" not in schedule and schedule != "multiplicative" and groups is one_group:
        state = through_a_file(state)
    state = copy.deepcopy(state)
    other, resumed = build(groups, schedule, factored=order != "then as_factor")
    if order == "optimizer first":
        other.load_state_dict(saved)
        resumed.load_state_dict(state)
    else:
        resumed.load_state_dict(state)
        other.load_state_dict(saved)
    resumed = as_factor(resumed)
    assert resumed.peak_lr == scheduler.peak_lr
    for step in range(11, STEPS):
        assert look(other) == look(optimizer)
        advance(scheduler, step)
        advance(resumed, step)


def test_a_checkpoint_from_before_it_was_a_factor():
    """The optimizer's was Adam's: its hyper-parameters are not taken over."""
    adam = torch.optim.AdamW(one_group())
    plain = SCHEDULES["step"](adam)
    for _ in range(10):
        plain.step()
    optimizer, scheduler = build(one_group, "step", factored=True)
    optimizer.load_state_dict(adam.state_dict())
    scheduler.load_state_dict(plain.state_dict())
    for _ in range(5):
        assert optimizer.param_groups[0]["lr"] == adam.param_groups[0]["lr"] / PEAK
        scheduler.step()
        plain.step()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("schedule", ["one cycle", "cyclic", "sequential", "plateau"])
def test_copies(schedule, duplicate):
    optimizer, scheduler = build(two_groups, schedule, factored=True)
    advance(scheduler, 0)
    other = duplicate(scheduler)
    assert type(other) is type(scheduler) and other.optimizer is not optimizer
    for step in range(1, 10):
        assert look(other.optimizer) == look(optimizer)
        advance(scheduler, step)
        advance(other, step)


# -- what is refused --------------------------------------------------------------------------


def test_twice_is_once():
    optimizer, scheduler = build(one_group, "one cycle", factored=True)
    before = look(optimizer)
    assert as_factor(scheduler) is scheduler and as_factor(scheduler, peak=PEAK) is scheduler
    assert look(optimizer) == before
    with pytest.raises(ValueError, match=r"a factor of the peak 0.001 already, not of 0.01"):
        as_factor(scheduler, peak=1e-2)


def test_two_schedulers_of_one_optimizer():
    optimizer = FusedSaLSa(one_group())
    first, second = schedulers.StepLR(optimizer, 3), schedulers.LinearLR(optimizer)
    as_factor(first)
    before = look(optimizer)
    with pytest.raises(ValueError, match=r"factors already.*as_factor\(ChainedScheduler\("):
        as_factor(second)
    assert look(optimizer) == before


def test_the_parts_of_a_sequence():
    optimizer = FusedSaLSa(one_group())
    first, second = schedulers.LinearLR(optimizer), schedulers.ExponentialLR(optimizer, 0.9)
    as_factor(first)
    both = schedulers.SequentialLR(optimizer, [first, second], milestones=[3])
    with pytest.raises(ValueError, match=r"parts.*as_factor\(SequentialLR\(...\)\) alone"):
        as_factor(both)


@pytest.mark.parametrize("peak", [0.0, -1.0, math.nan, math.inf, "1e-3", True])
def test_bad_peaks(peak):
    optimizer = FusedSaLSa(one_group())
    scheduler = SCHEDULES["step"](optimizer)
    with pytest.raises(ValueError, match=r"peak must be .* positive and finite, got"):
        as_factor(scheduler, peak=peak)
    assert optimizer.param_groups[0]["lr"] == PEAK and "peak_lr" not in vars(scheduler)
    if not isinstance(peak, str):
        with pytest.raises(ValueError, match=r"peak must be .* positive and finite, got"):
            as_factor(peak)


def test_a_schedule_of_zeros_has_no_peak():
    with pytest.raises(ValueError, match=r"peak must be .* got 0.0"):
        as_factor(SCHEDULES["step"](FusedSaLSa([torch.ones(2, requires_grad=True)], lr=0.0)))


@pytest.mark.parametrize("given", [None, "1e-3", [1e-3], torch.nn.Linear(1, 1)])
def test_what_is_no_scheduler(given):
    with pytest.raises(TypeError, match=r"a scheduler of torch's, or the largest .* got"):
        as_factor(given)


# -- rates that are written by hand -----------------------------------------------------------


def test_rates_by_hand():
    factor = as_factor(6e-4)
    assert factor(6e-4) == 1.0 and factor(0) == 0.0 and factor(3e-4) == 0.5
    assert type(factor(np.float64(3e-4))) is type(factor(torch.tensor(3e-4))) is Factor
    assert as_factor(np.float32(0.5))(0.25) == 0.5
    for lr in (-1e-3, math.nan, math.inf, "3e-4", None, True, torch.ones(2)):
        with pytest.raises(ValueError, match="the learning rate must be"):
            factor(lr)
    with pytest.raises(TypeError, match="once"):
        as_factor(6e-4, peak=6e-4)


def test_they_come_with_the_package():
    assert salsa_fused.schedules.as_factor is as_factor
    assert salsa_fused.units.transformer_units
    assert {"schedules", "units"} <= set(salsa_fused.__all__)
