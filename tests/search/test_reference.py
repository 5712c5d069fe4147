"""The reference against numbers worked by hand. eps = 0 wherever it makes them round."""

import math

import numpy as np
import pytest
from reference import DEFAULTS, PAPER, ReferenceLAMB, ReferenceSaLSa
from scripted_losses import given, never, scalar, script, search_state

approx = pytest.approx
NAN = math.nan


def square_and_grad(w):
    return float(w[0][0] ** 2), [2 * w[0]]


def square(w):
    return float(w[0][0] ** 2)


# Adam


def test_two_adam_steps():
    opt = scalar(search_period=None, init_step_size=0.1)
    opt.step(given(1.0, 2.0), never)
    assert opt.params[0][0] == approx(0.9, rel=1e-14)
    opt.step(given(1.0, 1.0), never)
    m_hat = 0.28 / 0.19  # 0.9 * 0.2 + 0.1 * 1
    v_hat = 0.004996 / 0.001999  # 0.999 * 0.004 + 0.001 * 1
    assert opt.params[0][0] == approx(0.9 - 0.1 * m_hat / math.sqrt(v_hat), rel=1e-12)
    assert (opt.m[0][0], opt.v[0][0], opt.t) == (approx(0.28), approx(0.004996), [2])


def test_eps_is_outside_the_root():
    opt = scalar(group={"eps": 2.0}, search_period=None, init_step_size=1.0)
    opt.step(given(1.0, 2.0), never)
    assert opt.params[0][0] == approx(0.5, rel=1e-14)


@pytest.mark.parametrize("cls", [ReferenceSaLSa, ReferenceLAMB])
def test_eps_is_never_zero(cls):
    opt = cls([np.zeros(1), np.ones(1)], [{"params": [0, 1], "eps": 0.0}], search_period=None)
    opt.step(given(1.0, 0.0, 0.0), never)
    assert [w[0] for w in opt.params] == [0.0, 1.0]
    opt.step(given(1.0, 2.0**-600, 0.0), never)  # its square is nothing
    m_hat = 2.0**-600 * 0.1 / 0.19
    assert opt.params[0][0] == approx(-m_hat / 2.0**-126, rel=1e-12, abs=0.0)


@pytest.mark.parametrize(
    "lr, decay, subtracted",  # eta is 2, u is 0
    [(0.5, 0.25, 0.25), (0.5, 0.99, 0.99), (0.5, 1.0, 1 / 2), (1.0, 1.5, 3 / 4), (0.0, 9.0, 0.0)],
)
def test_decay_never_flips_a_weight(lr, decay, subtracted):
    groups = [
        {"params": [0], "lr": lr, "weight_decay": decay},
        {"params": [1], "lr": 1.0, "weight_decay": 0.1},  # has an x of its own
    ]
    opt = ReferenceSaLSa([np.ones(1), np.ones(1)], groups, search_period=None, init_step_size=2.0)
    opt.step(given(1.0, 0.0, 0.0), never)
    assert [w[0] for w in opt.params] == approx([1.0 - subtracted, 0.8])


def test_decay_that_would_flip_leaves_the_rest_of_the_bracket_as_it_is():
    opt = scalar(5.0, group={"weight_decay": 1.5}, growth=1.0, init_step_size=2.0)
    seen = []
    opt.step(given(9.0, 1.0), lambda w: seen.append(w[0][0]) or 0.0)
    assert seen == [approx(3.0)]
    assert opt.params[0][0] == approx(5.0 * (1 - 3 / 4) - 2.0)


def test_weight_decay_is_in_the_final_write_only():
    opt = scalar(2.0, group={"weight_decay": 0.25}, growth=1.0, init_step_size=0.5)
    seen = []
    record = opt.step(given(4.0, 4.0), lambda w: seen.append(w[0][0]) or 1.0)
    assert record.outcome == "accepted"
    assert seen == [approx(1.5)]
    assert opt.params[0][0] == approx(2.0 - 0.5 * (1 + 0.25 * 2.0))


def test_missing_gradient_leaves_the_parameter_alone():
    opt = ReferenceSaLSa([np.ones(1), np.ones(1)], search_period=None)
    opt.step(given(1.0, 2.0, None), never)
    assert opt.t == [1, 0]
    assert opt.params[1][0] == 1.0 and opt.v[1][0] == 0.0
    before = search_state(opt)
    record = opt.step(given(1.0, None, None), never)
    assert search_state(opt) == before and not record.skipped and opt.t == [1, 0]


def test_trial_has_no_momentum_and_the_final_write_has():
    opt = scalar(0.0, growth=1.0)
    opt.m[0][:], opt.v[0][:], opt.t[0] = 0.5, 1.0, 1
    seen = []
    record = opt.step(given(5.0, 1.0), lambda w: seen.append(w[0][0]) or 0.0)
    v_hat = 1.0 / (1 - 0.999**2)
    assert seen[0] == approx(-1 / math.sqrt(v_hat), rel=1e-12)
    assert record.slope == approx(1 / math.sqrt(v_hat), rel=1e-12)
    m_hat = 0.55 / 0.19
    assert opt.params[0][0] == approx(-m_hat / math.sqrt(v_hat), rel=1e-12)


# The first trial's step size


@pytest.mark.parametrize("keywords, eta", [(DEFAULTS, 2**0.05), (PAPER, 0.1 * 2**0.002)])
def test_first_trial(keywords, eta):
    record = scalar(located=False, **keywords).step(square_and_grad, square)
    assert record.trials[0].eta == approx(eta, rel=1e-15)


def test_growth_per_step_counts_the_steps_since_the_last_search():
    opt = scalar(growth=2.0, growth_per="step", c=0.0, search_period=3)
    opt.steps = 10
    etas = []
    for _ in range(6):
        record = opt.step(given(9.0, 1.0), script(0.0))
        etas.append([trial.eta for trial in record.trials])
    assert etas == [[], [], [8.0], [], [], [64.0]]


@pytest.mark.parametrize(
    "growth, growth_per, since",
    [(2.0, "step", 5000), (2 ** (1 / 500), "step", 10**12), (1e300, "search", 0)],
)
@pytest.mark.parametrize("located", [True, False])
def test_growth_is_at_most_two_to_the_sixty(growth, growth_per, since, located):
    opt = scalar(located=located, growth=growth, growth_per=growth_per, c=0.0)
    opt.steps, opt.since_search = 10, since
    record = opt.step(given(9.0, 1.0), script(0.0, 99.0))
    assert record.trials[0].eta == 2.0**60


@pytest.mark.parametrize("located", [True, False])
def test_first_trial_is_at_most_1e38(located):
    opt = scalar(located=located, growth=2.0**50, init_step_size=1e30, c=0.0)
    assert opt.step(given(9.0, 1.0), script(0.0, 99.0)).trials[0].eta == 1e38


@pytest.mark.parametrize(
    "growth, backtrack, first", [(1.25, 0.7, 1.25), (8.0, 0.8, 1.25), (8.0, 0.25, 4.0)]
)
def test_locating_again_grows_by_one_rejection_at_most(growth, backtrack, first):
    opt = scalar(growth=growth, backtrack=backtrack)
    opt.located = False
    assert opt.step(given(9.0, 1.0), script(0.0, 99.0)).trials[0].eta == first
    for located in (True, False):  # and only then
        opt = scalar(located=located, growth=growth, backtrack=backtrack)
        assert opt.step(given(9.0, 1.0), script(0.0, 99.0)).trials[0].eta == growth


# Accepting


def test_doubling_search_on_a_square():
    # at 1: d = -1, slope 2; accepted while 2 eta - eta^2 >= 0.5 * eta * 2, that is eta <= 1
    opt = scalar(located=False, growth=1.0, init_step_size=0.03)
    opt.L = 6
    record = opt.step(square_and_grad, square)
    assert [trial.eta for trial in record.trials] == approx([0.03 * 2**k for k in range(7)])
    assert (record.outcome, record.step_size, record.slope) == ("accepted", 0.96, approx(2.0))
    assert record.trial_loss == approx(0.04**2)
    assert opt.params[0][0] == approx(0.04)
    assert opt.h == approx(0.01 * (1 - 0.04**2)) and opt.s == approx(0.02)
    assert opt.located and opt.accepted_once
    assert opt.L == 3  # one rejection


def test_halving_search_on_a_square():
    opt = scalar(located=False, growth=1.0, init_step_size=7.2)
    record = opt.step(square_and_grad, square)
    assert [trial.eta for trial in record.trials] == [7.2, 3.6, 1.8, 0.9]
    assert record.outcome == "accepted" and opt.L == 1
    assert opt.params[0][0] == approx(0.1)


def test_located_search_uses_backtrack_and_stops_at_the_first_accepted_trial():
    opt = scalar(growth=1.0, init_step_size=1.9)
    record = opt.step(square_and_grad, square)
    assert [trial.eta for trial in record.trials] == approx([1.9, 1.33, 0.931])
    opt = scalar(growth=1.0, init_step_size=0.03)
    assert len(opt.step(square_and_grad, square).trials) == 1


def test_locating_keeps_a_smaller_backtrack():
    opt = scalar(located=False, growth=1.0, backtrack=0.25, init_step_size=3.2)
    record = opt.step(square_and_grad, square)
    assert [trial.eta for trial in record.trials] == approx([3.2, 0.8])


def test_sixty_doublings_at_most():
    opt = scalar(located=False, growth=1.0)
    opt.L = 6
    record = opt.step(given(1.0, 1.0), lambda w: float(w[0][0]))
    assert len(record.trials) == 61
    assert record.outcome == "accepted" and opt.eta == 2.0**60
    assert opt.L == 3  # one rejection, though there was none


def test_the_last_accepted_step_size_is_remembered():
    opt = scalar(growth=1.0)
    assert opt.eta_accepted == 1.0
    opt.step(given(1.0, 1.0), script(2.0, 0.0))
    assert opt.eta == opt.eta_accepted == 0.7
    record = opt.step(given(1e20, 1.0), script(1.1e20, 1e20))  # flat, at a smaller one
    assert record.outcome == "flat" and opt.eta == approx(0.49) and opt.eta_accepted == 0.7


def test_smoothing():
    # h' = 0.5 * 4 + 0.5 * (3 - f1), s' = 0.5 * 2 + 0.5 * 6 = 4, c eta s' = 2
    opt = scalar(growth=1.0, beta3=0.5)
    opt.h, opt.s = 4.0, 2.0
    record = opt.step(given(3.0, 6.0), script(3.5, 3.0))
    assert [trial.lhs for trial in record.trials] == [1.75, 2.0]
    assert record.trials[0].rhs == approx(2.0, rel=1e-15)
    assert (opt.h, opt.s, opt.eta) == (2.0, approx(4.0), 0.7)


# The period


def searched_at(opt, loss_at, steps):
    return [k for k in range(1, steps + 1) if opt.step(given(1.0, 1.0), loss_at).searched]


def test_ten_first_steps_then_the_period():
    assert searched_at(scalar(c=0.0), script(0.0), 35) == [*range(1, 11), 20, 30]
    assert searched_at(scalar(c=0.0, search_period=4), script(0.0), 19) == [*range(1, 11), 14, 18]


def test_skipped_steps_do_not_count():
    opt = scalar(c=0.0, search_period=3)
    opt.step(given(NAN, 1.0), never)
    assert searched_at(opt, script(0.0), 11) == [*range(1, 11)]
    record = opt.step(given(NAN, 1.0), never)
    assert record.skipped and not record.searched and record.outcome == "non_finite"
    assert searched_at(opt, script(0.0), 2) == [2]
    assert opt.skipped_steps == 2


@pytest.mark.parametrize("rejections, period", [(0, 10), (1, 3), (2, 3), (3, 2)])
def test_doubling_schedule(rejections, period):
    opt = scalar(c=0.0, search_period=(2, 10))
    opt.L = 7
    record = opt.step(given(1.0, 1.0), script(*[2.0] * rejections, 0.0))
    assert record.outcome == "accepted" and period == opt.L


@pytest.mark.parametrize(
    "fast, slow, eta, period",
    [
        (1.0, 1.0, 3.0, 6),  # 1.2 / 1.02, 1 / 0.1765 = 5.67
        (1.0, 1.25, 1.0, 4),  # 1 / 1.2475, 1 / 0.2475 = 4.04
        (1.0, 1.0, 1.0, 9),  # r = 1
        (1.0, 1.0, 1.1, 9),  # 1.01 / 1.001, 111
        (1e-8, 1e-8, 1.0, 2),  # r = 10, 0.11
    ],
)
def test_rate_schedule(fast, slow, eta, period):
    opt = scalar(schedule="rate", c=0.0, growth=1.0, init_step_size=eta, search_period=(2, 9))
    opt.E_fast, opt.E_slow = fast, slow
    opt.step(given(1.0, 1.0), script(0.0))
    assert period == opt.L
    assert opt.E_fast == approx(0.9 * fast + 0.1 * eta)
    assert opt.E_slow == approx(0.99 * slow + 0.01 * eta)


# lr is a factor


def two_groups(lr0, lr1):
    groups = [{"params": [i], "lr": lr, "eps": 0.0} for i, lr in enumerate((lr0, lr1))]
    start = [np.array([1.0]), np.array([1.0])]
    opt = ReferenceSaLSa(start, groups, growth=1.0, look_back=False)
    opt.located = opt.accepted_once = True
    return opt


def test_lr_is_relative_in_trials_and_absolute_in_the_write():
    opt = two_groups(0.5, 0.25)
    seen = []
    record = opt.step(given(9.0, 2.0, 3.0), lambda w: seen.append([x[0] for x in w]) or 0.0)
    assert record.slope == approx(2.0 + 0.5 * 3.0)
    assert seen == [approx([0.0, 0.5])]
    assert [w[0] for w in opt.params] == approx([0.5, 0.75])


def test_all_lr_zero():
    opt = two_groups(0.0, 0.0)
    record = opt.step(given(9.0, 2.0, 3.0), never)
    assert not record.searched and record.outcome is None
    assert opt.t == [1, 1] and opt.m[0][0] == approx(0.2)
    assert [w[0] for w in opt.params] == [1.0, 1.0]
