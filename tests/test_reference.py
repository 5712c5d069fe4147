"""The reference against numbers worked by hand. eps = 0 wherever it makes them round."""

import math
import warnings

import numpy as np
import pytest
from reference import DEFAULTS, PAPER, ReferenceLAMB, ReferenceSaLSa

approx = pytest.approx
NAN = math.nan


def scalar(w=1.0, *, located=True, group=None, **keywords):
    group = {"params": [0], "eps": 0.0, **(group or {})}
    opt = ReferenceSaLSa([np.array([w])], [group], **{"look_back": False, **keywords})
    opt.located = opt.accepted_once = located
    return opt


def square_and_grad(w):
    return float(w[0][0] ** 2), [2 * w[0]]


def square(w):
    return float(w[0][0] ** 2)


def given(f0, *grads):
    return lambda w: (f0, [None if g is None else np.array([g]) for g in grads])


def script(*losses):
    """A loss_at that returns these, then the last one for ever."""
    left = list(losses)
    return lambda w: left.pop(0) if len(left) > 1 else left[0]


def never(w):
    raise AssertionError("no trial expected")


def flat(opt):
    """One step whose search ends flat: the loss hides every difference."""
    return opt.step(given(1e60, 1.0), script(1e60))


def search_state(opt):
    names = "eta h s L E_fast E_slow since_search steps eta_accepted flats"
    return tuple(getattr(opt, name) for name in names.split())


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


# Flat


def test_flat_first_trial_has_no_growth():
    opt = scalar(growth=2.0)
    opt.h, opt.s, opt.L = 0.1, 0.2, 5
    record = opt.step(given(1e20, 1.0), script(1e20))
    assert record.outcome == "flat" and record.trials[0].eta == 2.0
    assert search_state(opt)[:4] == (1.0, 0.1, 0.2, 5)
    assert opt.params[0][0] == approx(0.0) and opt.steps == 1


def test_flat_later_trial_keeps_its_eta():
    opt = scalar(growth=1.0)
    record = opt.step(given(1e20, 1.0), script(1.1e20, 1e20))
    assert record.outcome == "flat" and opt.eta == 0.7
    assert (opt.h, opt.s, opt.L) == (0.0, 0.0, 1)


def test_flat_needs_both():
    # the decrease is nothing, but c eta slope is seen: Armijo decides
    assert scalar().step(given(1.0, 1.0), script(1.0)).outcome == "exhausted"


def test_locating_doubles_through_flat():
    # c eta slope = 0.5e-15, 1e-15, 2e-15, ... against a resolution of 1.8e-15
    opt = scalar(located=False, growth=1.0, init_step_size=1e-15)
    record = opt.step(given(1.0, 1.0), script(1.0, 1.0, 0.5, 0.25, 2.0))
    assert record.outcome == "accepted" and len(record.trials) == 5
    assert opt.eta == approx(8e-15) and record.trial_loss == 0.25


def test_flat_then_rejected_while_locating():
    opt = scalar(located=False, growth=2.0, init_step_size=1e-16)
    record = opt.step(given(1.0, 1.0), script(1.0, 2.0, 1.0))
    assert [trial.eta for trial in record.trials] == approx([2e-16, 4e-16, 2e-16])
    assert record.outcome == "flat" and opt.eta == approx(2e-16) and not opt.located


def test_nothing_but_flat_while_locating():
    opt = scalar(located=False, growth=2.0)
    record = flat(opt)
    assert record.outcome == "flat" and len(record.trials) == 61
    assert opt.eta == 1.0 and not opt.accepted_once and not opt.located


def test_slope_zero():
    opt = scalar(group={"eps": 1e-8})
    record = opt.step(given(1.0, 0.0), never)
    assert record.outcome == "flat" and record.searched and not record.trials
    assert opt.t == [1] and opt.eta == 1.0 and opt.s == 0.0


def test_ten_flat_searches_in_a_row_then_the_next_locates():
    opt = scalar(growth=1.0)
    for k in range(1, 10):
        assert len(flat(opt).trials) == 1
        assert (opt.flats, opt.located) == (k, True)
    flat(opt)
    assert opt.flats == 10 and opt.locating
    assert len(flat(opt).trials) == 61
    assert (opt.flats, opt.locating, opt.eta) == (1, False, 1.0)  # this one only
    opt.flats = 10
    record = opt.step(given(1.0, 1.0), script(-3.0, -3.0, 9.0))
    assert [trial.eta for trial in record.trials] == [1.0, 2.0, 4.0]
    assert (opt.flats, opt.locating, opt.eta) == (0, False, 2.0)


def test_flat_after_doublings_keeps_the_step_size():
    opt = scalar(growth=1.0)
    opt.flats = 10
    record = opt.step(given(1e20, 1.0), script(1e20, 1e20, 1e20, 2e20, 1e20))
    assert [trial.eta for trial in record.trials] == [1.0, 2.0, 4.0, 8.0, 4.0]
    assert (record.outcome, opt.eta) == ("flat", 1.0)


@pytest.mark.parametrize("f0, g", [(1.0, 0.0), (NAN, 1.0), (1.0, NAN)])
def test_a_slope_of_zero_and_a_skipped_step_do_not_touch_the_count(f0, g):
    opt = scalar()
    opt.flats = 9
    opt.step(given(f0, g), never)
    assert opt.flats == 9
    flat(opt)
    assert opt.locating


@pytest.mark.parametrize(
    "loss, outcome", [(0.0, "accepted"), (2.0, "exhausted"), (NAN, "non_finite")]
)
@pytest.mark.parametrize("found", [True, False])
@pytest.mark.filterwarnings("ignore:no step down to")
def test_any_other_outcome_begins_the_count_anew(loss, outcome, found):
    opt = scalar(located=found)
    opt.flats = 9
    assert opt.step(given(1.0, 1.0), script(loss)).outcome == outcome
    assert opt.flats == 0
    flat(opt)
    assert opt.flats == 1


# Exhausted, non-finite


@pytest.mark.parametrize(
    "losses, outcome",
    [
        ((20.0,), "exhausted"),
        ((NAN, 20.0, NAN), "exhausted"),
        ((NAN, math.inf, -math.inf), "non_finite"),
    ],
)
def test_exhausted(losses, outcome):
    opt = scalar(growth=2.0, init_step_size=0.5)
    opt.steps, opt.since_search, opt.h, opt.s, opt.L, opt.flats = 20, 4, 0.1, 0.2, 5, 7
    before = search_state(opt)
    record = opt.step(given(1.0, 1.0), script(*losses))
    assert (record.outcome, record.skipped, record.trial_loss) == (outcome, True, None)
    assert [trial.eta for trial in record.trials] == approx([0.7**k for k in range(10)])
    assert opt.eta == record.step_size == approx(0.7**10)
    assert search_state(opt) == (opt.eta, *before[1:-1], 0)
    assert opt.params[0][0] == 1.0 and opt.t == [0] and opt.m[0][0] == opt.v[0][0] == 0.0
    assert opt.skipped_steps == 1 and opt.search_due
    assert opt.accepted_once and not opt.located
    record = opt.step(given(1.0, 1.0), script(20.0, 0.0))  # locates
    assert [trial.eta for trial in record.trials] == approx([0.7**9, 0.5 * 0.7**9])
    assert record.outcome == "accepted" and opt.located and opt.steps == 21


@pytest.mark.parametrize("backtrack, shrink", [(0.5, 0.5), (0.25, 0.25)])
def test_exhausted_while_locating_again(backtrack, shrink):
    opt = scalar(growth=1e9, backtrack=backtrack)
    opt.located = False
    for search in range(2):  # the first trial of the second is the last of the first
        record = opt.step(given(1.0, 1.0), script(20.0))
        exponents = range(9 * search - 1, 9 * search + 9)
        assert [trial.eta for trial in record.trials] == [shrink**k for k in exponents]
        assert opt.eta == shrink ** (9 * search + 9)


def test_exhausted_at_the_smallest_size_tried():
    opt = scalar(growth=2.0, backtrack=0.5, init_step_size=1e-20, max_trials=2)
    opt.located = False
    record = opt.step(given(1.0, 1.0), script(1.0, 1.0, 1.0, 2.0))  # three flat, two rejected
    assert [trial.eta for trial in record.trials] == [2e-20, 4e-20, 8e-20, 1.6e-19, 8e-20]
    assert record.outcome == "exhausted" and opt.eta == approx(1e-20, abs=0.0)


def test_exhausted_keeps_a_trillionth_of_the_last_accepted():
    opt = scalar(growth=1.0, init_step_size=4.0)
    opt.eta = 1e-11
    opt.step(given(1.0, 1.0), script(20.0))
    assert opt.eta == 4e-12
    opt.step(given(1.0, 1.0), script(20.0))
    assert opt.eta == 4e-12 and opt.eta_accepted == 4.0


def test_hundred_rejections_before_the_first_acceptance():
    opt = scalar(located=False, growth=1.0)
    before = search_state(opt)
    with pytest.warns(UserWarning, match="function of the weights"):
        record = opt.step(given(1.0, 1.0), script(2.0))
    assert record.skipped and record.outcome == "exhausted" and len(record.trials) == 100
    assert record.trials[-1].eta == 2.0**-99
    assert search_state(opt) == before and opt.t == [0] and opt.params[0][0] == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(given(1.0, 1.0), script(2.0))
    assert opt.skipped_steps == 2


def test_no_finite_trial_before_the_first_acceptance():
    opt = scalar(located=False)
    with pytest.warns(UserWarning, match="lowered the loss"):
        record = opt.step(given(1.0, 1.0), script(NAN))
    assert record.skipped and record.outcome == "non_finite" and len(record.trials) == 100
    assert opt.eta == 1.0


@pytest.mark.parametrize("f0, g", [(NAN, 1.0), (math.inf, 1.0), (1.0, NAN), (1.0, math.inf)])
def test_skipped_search(f0, g):
    opt = scalar()
    before = search_state(opt)
    record = opt.step(given(f0, g), never)
    assert record.skipped and record.searched and record.outcome == "non_finite"
    assert search_state(opt) == before and opt.t == [0] and opt.skipped_steps == 1


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
