"""Every rule of the search, on scripted losses and without a tensor."""

from __future__ import annotations

import math

import pytest
from scripted_search import DEFAULTS, EPS, SETTLED, is_due, plain_step, search, smooth

from salsa_fused import settings
from salsa_fused.line_search import LineSearch, SearchSettings, SearchState

PAPER = SearchSettings(
    **{k: v for k, v in settings.PAPER.items() if k != "betas"}, beta3=settings.PAPER["betas"][2]
)
NAN = math.nan
BAD, GOOD = 1e4, -1e4  # rejected and accepted, at any step size tried here
approx = pytest.approx


# -- when a search is due ---------------------------------------------------------------------


def test_the_first_ten_steps_search_whatever_the_period():
    due = [is_due(SearchState(1.0, period=10, steps=n)) for n in range(12)]
    assert due == [True] * 10 + [False] * 2


@pytest.mark.parametrize("period", [1, 2, 5])
def test_then_every_l_steps(period):
    state = SETTLED._replace(period=period, steps_since_search=0)
    gap = 1
    while not is_due(state):
        state = plain_step(state)
        gap += 1
    assert gap == period


def test_never_without_a_period():
    settings = DEFAULTS._replace(search_period=None)
    assert not is_due(SearchState.fresh(settings), settings)


def test_a_plain_step_counts_and_changes_nothing_else():
    after = plain_step(SETTLED)
    assert after == SETTLED._replace(steps=51, steps_since_search=4)


# -- the first trial --------------------------------------------------------------------------


def test_growth_per_search_and_per_step():
    assert search(losses=[GOOD]).tried == [approx(0.5 * 2 ** (1 / 20))]
    per_step = PAPER._replace(growth=1.1)
    assert search(losses=[GOOD], settings=per_step).tried == [approx(0.5 * 1.1**4)]


def test_growth_per_step_is_growth_per_search_where_every_step_searches():
    for state in (SearchState.fresh(PAPER), SETTLED._replace(steps_since_search=0)):
        both = [
            LineSearch(PAPER._replace(growth_per=per), state).first_trial()
            for per in ("search", "step")
        ]
        assert both[0] == both[1]


# -- the criterion ----------------------------------------------------------------------------


def test_the_boundary_of_the_criterion():
    eta, s = 0.5 * DEFAULTS.growth, smooth(1.0, 3.0)
    enough = (0.5 * eta * s - 0.99 * 0.2) / 0.01  # f0 - f1 for equality
    accepted = search(losses=[1.0 - enough - 1e-9], slope=3.0)
    rejected = search(losses=[1.0 - enough + 1e-9, GOOD], slope=3.0)
    assert (accepted.outcome, accepted.trials) == ("accepted", 1)
    assert (rejected.outcome, rejected.trials) == ("accepted", 2)
    after = accepted.finish()
    assert after.smoothed_decrease == approx(smooth(0.2, enough + 1e-9))
    assert after.smoothed_slope == approx(s)
    assert after.step_size == approx(eta)
    assert (after.steps, after.steps_since_search) == (51, 0)


def test_a_rejection_shrinks_and_leaves_h_and_s_alone():
    done = search(losses=[BAD, BAD, GOOD])
    assert done.tried == approx([0.5 * DEFAULTS.growth * 0.7**j for j in range(3)])
    after = done.finish()
    assert after.smoothed_decrease == approx(smooth(0.2, 1.0 - GOOD))  # of the accepted trial alone
    assert after.smoothed_slope == approx(smooth(1.0, 1.0))
    assert done.result == (3, "accepted", 1.0, GOOD, 1.0, after.step_size, None)


def test_there_is_no_state_before_the_end():
    done = LineSearch(DEFAULTS, SETTLED)
    done.first_trial()
    done.start_from(1.0, 1.0, EPS)
    done.report(BAD)
    with pytest.raises(RuntimeError, match="has not ended"):
        done.finish()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_trial_that_is_not_finite_is_rejected(bad):
    done = search(losses=[bad, GOOD])
    assert (done.outcome, done.trials, done.rejections) == ("accepted", 2, 1)


def test_a_negative_loss_is_searched_like_any_other():
    shifted = search(losses=lambda eta: -100.0 - eta, loss=-100.0)
    plain = search(losses=lambda eta: 1.0 - eta, loss=1.0)
    assert shifted.tried == plain.tried
    assert shifted.finish().smoothed_decrease == approx(plain.finish().smoothed_decrease)


# -- flat -------------------------------------------------------------------------------------


def test_flat_at_the_first_trial_keeps_neither_growth_nor_means():
    done = search(losses=[1e20], loss=1e20)
    assert (done.outcome, done.trials, done.step_size) == ("flat", 1, 0.5)
    expected = SETTLED._replace(
        steps=51,
        steps_since_search=0,
        searches=1,
        total_trials=1,
        flat_searches=1,
    )
    assert done.finish() == expected


def test_flat_later_keeps_the_step_size_tried_last():
    done = search(losses=[3e20, 1e20], loss=1e20)
    assert done.outcome == "flat"
    assert done.finish().step_size == approx(0.5 * DEFAULTS.growth * 0.7)


def test_flat_needs_both_sides_below_the_resolution():
    loss = 1.0 / (8 * EPS)  # resolution 1
    settings = DEFAULTS._replace(growth=1.0)
    small = SETTLED._replace(step_size=1.0)
    assert search(small, [loss], loss=loss, slope=1.9, settings=settings).outcome == "flat"
    done = search(small, [loss], loss=loss, slope=2.1, settings=settings)
    assert done.trials == 2  # the first was rejected
    done = search(small, [loss - 1.5], loss=loss, slope=1.9, settings=settings)
    assert done.outcome != "flat"


def test_the_resolution_is_that_of_the_loss_dtype():
    losses = [1.0 - 1e-3]
    small = SETTLED._replace(step_size=1e-3, smoothed_decrease=1.0)
    assert search(small, losses, eps=2.0**-8).outcome == "flat"  # bfloat16
    assert search(small, losses, eps=2.0**-23).outcome == "accepted"


def test_slope_zero_is_flat_without_a_trial():
    done = search(slope=0.0)
    assert (done.outcome, done.trials, done.skipped) == ("flat", 0, False)
    assert done.finish() == SETTLED._replace(steps=51, steps_since_search=0, searches=1)


def test_a_loss_of_zero_is_never_flat():
    assert search(losses=[0.0], loss=0.0).outcome == "accepted"


# -- locating ---------------------------------------------------------------------------------

LOST = SETTLED._replace(located=False)


def test_locating_halves():
    done = search(LOST, [BAD, BAD, GOOD])
    assert done.tried == approx([0.5 * DEFAULTS.growth * 0.5**j for j in range(3)])


def test_locating_never_shrinks_less_than_backtrack():
    done = search(LOST, [BAD, GOOD], settings=DEFAULTS._replace(backtrack=0.3))
    assert done.tried[1] == approx(0.3 * done.tried[0])


def test_locating_doubles_until_a_rejection_and_takes_the_last_accepted():
    losses = [GOOD, GOOD, GOOD / 2, BAD]
    done = search(LOST, losses)
    first = 0.5 * DEFAULTS.growth
    assert done.tried == approx([first, 2 * first, 4 * first, 8 * first])
    after = done.finish()
    assert (done.outcome, after.step_size) == ("accepted", approx(4 * first))
    assert after.smoothed_decrease == approx(smooth(0.2, 1.0 - GOOD / 2))
    assert done.result.trial_loss == GOOD / 2
    assert after.located
    assert after.period == 2  # one rejection: 4 // 2


def test_locating_from_far_below_climbs_through_flat_ground():
    state = SearchState.fresh(DEFAULTS._replace(init_step_size=1e-20))
    done = search(state, lambda eta: 1.0 - eta if eta < 1e-13 else BAD)
    assert done.outcome == "accepted"
    assert 2e-14 < done.finish().step_size < 1e-13


def test_sixty_doublings_at_most():
    done = search(LOST, lambda eta: -1e3 * eta)
    assert done.trials == 61
    after = done.finish()
    assert after.step_size == approx(0.5 * DEFAULTS.growth * 2.0**60)
    assert after.period == 2  # counted as one rejection: 4 // 2


def test_sixty_doublings_and_nothing_but_flat():
    done = search(LOST, [1e40], loss=1e40)
    assert (done.outcome, done.trials) == ("flat", 61)
    after = done.finish()
    assert (after.step_size, after.located) == (0.5, False)


def test_flat_then_rejected_back_tracks_from_there():
    done = search(LOST, [1.0, 2.0, 1.0], slope=1e-16)
    first = 0.5 * DEFAULTS.growth
    assert done.tried == approx([first, 2 * first, first])
    assert done.outcome == "flat"
    assert not done.finish().located


def test_located_by_an_accepted_search_only():
    assert search(LOST, [GOOD, BAD]).finish().located
    assert not search(LOST, [BAD, 1.0], slope=1e-17).finish().located


# -- exhausted --------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "outcome"), [(BAD, "exhausted"), (NAN, "non_finite")])
def test_exhausted_after_max_trials_skips(bad, outcome):
    done = search(losses=[bad])
    assert (done.outcome, done.trials, done.skipped) == (outcome, 10, True)
    smallest = 0.5 * DEFAULTS.growth * 0.7**9
    assert min(done.tried) == approx(smallest)
    after = done.finish()
    assert after.step_size == approx(0.7 * smallest)
    assert after == SETTLED._replace(
        step_size=after.step_size, located=False, skipped_steps=1, searches=1, total_trials=10
    )
    assert is_due(after)


def test_the_search_after_an_exhausted_one_begins_below_all_that_was_rejected():
    state, smallest = SETTLED, math.inf
    for _ in range(5):
        done = search(state, [BAD])
        assert done.tried[0] < smallest
        smallest, state = min(done.tried), done.finish()


def test_it_begins_below_also_where_growth_is_large():
    fast = DEFAULTS._replace(growth=1.5, growth_per="step", search_period=(1, 50))
    state, smallest = SETTLED._replace(steps_since_search=40), math.inf
    for _ in range(5):
        done = search(state, [BAD], settings=fast)
        assert done.tried[0] <= smallest
        smallest, state = min(done.tried), done.finish()


def test_bad_batches_without_end_leave_a_step_size_that_can_come_back():
    state = SETTLED._replace(accepted_step_size=0.5)
    for _ in range(200):
        state = search(state, [BAD]).finish()
    assert state.step_size == approx(0.5e-12)
    assert state.smoothed_decrease == SETTLED.smoothed_decrease

    def line(eta):  # too small a step is not felt, too long a one is rejected
        return 1.0 if eta < 1e-8 else 1.0 - eta if eta < 0.3 else BAD

    back = search(state, line)
    assert back.outcome == "accepted" and back.finish().step_size > 0.1


def test_exhausted_shows_the_last_finite_loss():
    done = search(losses=[2 * BAD] * 8 + [BAD, NAN])
    assert (done.outcome, done.result.trial_loss) == ("exhausted", BAD)


@pytest.mark.parametrize("bad", [BAD, NAN])
def test_a_hundred_rejections_before_the_first_acceptance(bad):
    state = SearchState.fresh(DEFAULTS)
    assert search(state, [bad] * 99 + [GOOD]).outcome == "accepted"
    done = search(state, [bad])
    assert done.trials == 100
    assert done.skipped
    assert done.gave_up
    assert done.finish() == state._replace(skipped_steps=1, searches=1, total_trials=100)
    assert done.finish().step_size == DEFAULTS.init_step_size


def test_max_trials_once_a_search_was_accepted():
    lost = LOST._replace(accepted_once=True)
    done = search(lost, [BAD], settings=DEFAULTS._replace(max_trials=3))
    assert (done.outcome, done.trials, done.gave_up) == ("exhausted", 3, False)


# -- flat again and again ---------------------------------------------------------------------


def flats(state, times, slope=1e-17):
    for _ in range(times):
        done = search(state, [1.0], slope=slope)
        assert done.outcome == "flat"
        state = done.finish()
    return state


def test_ten_flat_searches_in_a_row_make_the_next_one_locate():
    state = flats(SETTLED, 9)
    assert state.located and state.flat_searches == 9
    state = flats(state, 1)
    assert (state.located, state.flat_searches, state.step_size) == (True, 10, 0.5)
    found = search(state, [1.0, 1.0, GOOD, GOOD, BAD], slope=1e-16)
    assert found.trials == 5 and found.finish().step_size == approx(0.5 * DEFAULTS.growth * 8)
    state = flats(state, 1)  # it locates, and is flat as well: not the next one, too
    assert state.flat_searches == 1
    assert search(state, [GOOD]).trials == 1


def test_a_flat_search_never_leaves_a_larger_step_size():
    done = search(LOST, [1.0, 1.0, 1.0, 2.0, 1.0], slope=1e-16)
    assert done.outcome == "flat" and done.tried[-1] > 0.5
    assert done.finish().step_size == 0.5


def test_a_slope_of_zero_neither_counts_nor_interrupts():
    state = flats(flats(SETTLED, 5), 20, slope=0.0)
    assert (state.flat_searches, state.located) == (5, True)


@pytest.mark.parametrize("losses", [[GOOD], [BAD], [NAN]])
def test_any_other_outcome_begins_the_count_anew(losses):
    assert search(flats(SETTLED, 9), losses).finish().flat_searches == 0


def test_a_loss_that_is_not_finite_leaves_the_count():
    assert search(flats(SETTLED, 9), loss=NAN).finish().flat_searches == 9


# -- numbers that do not overflow -------------------------------------------------------------


def test_growth_for_many_steps_is_bounded():
    fast = DEFAULTS._replace(growth=2.0, growth_per="step", search_period=(1, 2000))
    waited = SETTLED._replace(steps_since_search=1999, step_size=1e-3)
    assert search(waited, [-1e40], settings=fast).tried == [approx(1e-3 * 2.0**60)]
    paused = SETTLED._replace(steps_since_search=600_000)
    assert search(paused, [-1e40], settings=PAPER).tried == [approx(0.5 * 2.0**60)]


def test_a_step_size_that_only_grows_stays_finite():
    done = search(SETTLED._replace(step_size=1e38), [-1e40])
    assert done.finish().step_size == 1e38


# -- skipped ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "slope"), [(NAN, 1.0), (math.inf, 1.0), (1.0, NAN)])
def test_a_loss_or_slope_that_is_not_finite_skips(loss, slope):
    done = search(loss=loss, slope=slope)
    assert (done.outcome, done.trials, done.skipped) == ("non_finite", 0, True)
    assert done.finish() == SETTLED._replace(skipped_steps=1)
    assert is_due(done.finish())


# -- the period -------------------------------------------------------------------------------


@pytest.mark.parametrize(("rejections", "period"), [(0, 8), (1, 2), (2, 2), (3, 1), (6, 1)])
def test_doubling_schedule(rejections, period):
    done = search(losses=[BAD] * rejections + [GOOD])
    assert done.finish().period == period


def test_doubling_schedule_stays_within_its_bounds():
    settings = DEFAULTS._replace(search_period=(3, 6))
    assert SearchState.fresh(settings).period == 3
    assert search(losses=[GOOD], settings=settings).finish().period == 6
    assert search(losses=[BAD, GOOD], settings=settings).finish().period == 3
    assert search(losses=[BAD] * 3 + [GOOD], settings=settings).finish().period == 3


def rate_period(fast, slow, eta, bounds=(1, 10)):
    settings = PAPER._replace(growth=1.0, search_period=bounds)
    state = SETTLED._replace(step_size=eta, fast_mean=fast, slow_mean=slow)
    after = search(state, [GOOD], settings=settings).finish()
    assert after.fast_mean == approx(0.9 * fast + 0.1 * eta)
    assert after.slow_mean == approx(0.99 * slow + 0.01 * eta)
    return after.period


def test_rate_schedule():
    assert rate_period(1.0, 1.0, 1.0) == 10  # r = 1: no change at all
    assert rate_period(1.2, 1.0, 1.0) == 6  # r = 1.18: 1 / 0.18 = 5.56
    assert rate_period(0.8, 1.0, 1.0) == 5  # r = 0.82, inverted 1.2195: 4.56
    assert rate_period(1e-8, 1e-8, 1.0) == 1  # the first search: r = 10
    assert rate_period(1.2, 1.0, 1.0, bounds=(1, 4)) == 4
    assert rate_period(9.0, 1.0, 1.0, bounds=(3, 4)) == 3


def test_the_means_move_with_accepted_searches_only():
    settings = PAPER._replace(search_period=(1, 10))
    assert search(losses=[BAD], settings=settings).finish().fast_mean == SETTLED.fast_mean


def test_the_state_is_plain_numbers():
    numbers = search(losses=[GOOD]).finish()._asdict()
    assert SearchState.read_from(numbers)._asdict() == numbers
    assert all(type(value) in (int, float, bool) for value in numbers.values())
