"""The reference's flat, exhausted and skipped searches against numbers worked by hand."""

import math
import warnings

import pytest
from scripted_losses import flat, given, never, scalar, script, search_state

approx = pytest.approx
NAN = math.nan


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
