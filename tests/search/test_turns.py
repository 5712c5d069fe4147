"""The turns of PLASLS: one step size for each parameter group, without a tensor."""

from __future__ import annotations

import copy
import math

import pytest

from salsa_fused import turns
from salsa_fused.line_search import LineSearch, SearchSettings

N = 3
PAPER = SearchSettings(
    c=0.3, backtrack=0.9, growth=1.1, growth_per="step", schedule="rate", init_step_size=0.1
)


def groups_of(settings=PAPER, units="groups", **changes):
    settings, state = settings._asdict(), turns.fresh(settings) | changes
    return [{"units": units, "direction": "adam", **settings, **state} for _ in range(N)]


def search(groups, *losses, loss=1.0, slope=1.0):
    """One step: a search whose trials have these losses, or none where none is due."""
    if not turns.is_due(groups):
        turns.count_plain_step(groups)
        return None
    done = turns.begin(groups, LineSearch)
    done.first_trial()
    done.start_from(loss, slope, 2.0**-23)
    for trial_loss in losses:
        if done.trying:
            done.report(trial_loss)
    assert not done.trying
    turns.remember(groups, done, turns.window_after(groups, done))
    return done


def found(**changes):
    """Groups after the search that was one for all."""
    return groups_of(accepted_once=True, located=True, step_size=0.2, **changes)


ACCEPTED, REJECTED = -9.0, 9.0


def test_the_first_search_is_global_until_one_is_accepted():
    groups = groups_of()
    first = search(groups, *[math.nan] * 100)
    assert first.unit is None and first.skipped
    second = search(groups, 1.0, *[1.0] * 30)  # flat for ever
    assert second.unit is None and second.outcome == "flat"
    third = search(groups, ACCEPTED, REJECTED)
    assert third.unit is None and third.outcome == "accepted"
    sizes = {group["step_size"] for group in groups}
    assert sizes == {third.result.step_size} and third.result.unit is None
    for group in groups:  # each unit begins with h = s = 0
        assert group["smoothed_decrease"] == group["smoothed_slope"] == 0.0
        assert group["located"] and group["accepted_once"] and group["next_unit"] == 0
        assert group["fast_mean"] == pytest.approx(0.9e-8 + 0.1 * third.step_size)
    assert search(groups, ACCEPTED).unit == 0


def test_one_step_size_for_all_keeps_h_and_s():
    groups = groups_of(units="all")
    done = search(groups, ACCEPTED, REJECTED)
    assert groups[0]["smoothed_slope"] == pytest.approx(0.01)
    assert done.unit is None and search(groups, ACCEPTED).unit is None


def test_units_take_turns():
    groups = found()
    assert [search(groups, ACCEPTED).unit for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_what_is_a_units_own():
    groups = found()
    before = copy.deepcopy(groups)
    search(groups, REJECTED, ACCEPTED)
    assert groups[0]["step_size"] == pytest.approx(0.2 * 1.1 * 0.9)
    assert groups[0]["smoothed_slope"] == pytest.approx(0.01)
    for other in groups[1:]:
        for name in turns.OWN:
            if name != "steps_since_search":
                assert other[name] == before[1][name]
        for name in ("steps", "searches", "total_trials", "period", "next_unit"):
            assert other[name] == groups[0][name]
    assert groups[0]["steps"] == groups[0]["searches"] == 1 and groups[0]["total_trials"] == 2


def test_the_smoothing_is_the_units():
    groups = found()
    for decrease in (10.0, 20.0, 30.0, 40.0):
        search(groups, 1.0 - decrease)
    assert groups[1]["smoothed_decrease"] == pytest.approx(0.01 * 20.0)
    assert groups[0]["smoothed_decrease"] == pytest.approx(0.01 * (0.99 * 10.0 + 40.0))


def test_growth_counts_the_steps_since_the_units_own_search():
    groups = found()
    for _ in range(N):
        search(groups, ACCEPTED)
    fresh = turns.begin(groups, LineSearch)
    assert fresh.unit == 0  # searched three steps ago
    assert fresh.first_trial() == pytest.approx(groups[0]["step_size"] * 1.1**3)


def test_a_search_is_due_by_the_steps_since_that_of_any_unit():
    groups = found(steps=20, period=3)
    for group, since in zip(groups, (5, 1, 9)):
        group["steps_since_search"] = since
    assert search(groups) is None
    assert [group["steps_since_search"] for group in groups] == [6, 2, 10]
    assert search(groups, ACCEPTED).unit == 0
    assert [group["steps_since_search"] for group in groups] == [0, 3, 11]


def test_the_settings_are_those_of_the_first_group():
    groups = found(steps=20, period=1)
    groups[0]["search_period"] = None
    for _ in range(2 * N):
        assert search(groups) is None


@pytest.mark.parametrize("units", ["all", "groups"])
def test_what_is_edited_in_one_group_is_equal_in_all_after_a_plain_step(units):
    groups = groups_of(units=units, steps=20, period=50, located=True)
    groups[0]["step_size"] = 0.3
    assert search(groups) is None
    assert [group["step_size"] for group in groups] == [0.3] * N
    assert [group["steps"] for group in groups] == [21] * N


def test_the_period_follows_the_unit_that_was_searched():
    doubling = PAPER._replace(schedule="doubling")
    groups = groups_of(doubling, accepted_once=True, located=True, step_size=0.2, period=4)
    search(groups, ACCEPTED)
    assert {group["period"] for group in groups} == {8}
    search(groups, REJECTED, ACCEPTED)
    assert {group["period"] for group in groups} == {4}
    groups = found(fast_mean=0.2, slow_mean=0.2)
    groups[0]["fast_mean"] = 0.4  # of its own means
    search(groups, ACCEPTED)
    assert groups[0]["period"] == 1
    search(groups, ACCEPTED)
    assert groups[0]["period"] == 10


def test_exhausted_is_the_units():
    groups = found(period=5)
    done = search(groups, *[REJECTED] * 10)
    assert done.outcome == "exhausted" and done.skipped
    below = 0.2 * 1.1 * 0.9**10
    assert [group["step_size"] for group in groups] == pytest.approx([below, 0.2, 0.2])
    assert [group["located"] for group in groups] == [False, True, True]
    assert {group["accepted_step_size"] for group in groups} == {0.1}  # where searches start
    assert {group["period"] for group in groups} == {5}
    assert search(groups, ACCEPTED, REJECTED).unit == 0  # at once, and until one succeeds


@pytest.mark.parametrize("losses", [(ACCEPTED,), (1.0,)])
def test_the_turn_moves_on_where_the_step_is_taken(losses):
    groups = found()
    slope = 1e-9 if losses == (1.0,) else 1.0
    done = search(groups, *losses, slope=slope)
    assert done.outcome == {1: "flat"}.get(losses[0], done.outcome)
    assert groups[0]["next_unit"] == 1


def test_flat_searches_are_counted_for_each_unit():
    groups = found()
    for _ in range(4):
        search(groups, 1.0, slope=1e-9)
    assert [group["flat_searches"] for group in groups] == [2, 1, 1]


def test_a_unit_without_slope_is_flat():
    groups = found()
    done = search(groups, slope=0.0)
    assert (done.outcome, done.trials, groups[0]["next_unit"]) == ("flat", 0, 1)


@pytest.mark.parametrize(("loss", "slope"), [(math.nan, 1.0), (1.0, math.inf), (1.0, 1.0)])
def test_the_turn_waits_where_the_step_is_skipped(loss, slope):
    groups = found()
    groups[0]["next_unit"] = groups[1]["next_unit"] = groups[2]["next_unit"] = 1
    done = search(groups, *[math.inf] * 10, loss=loss, slope=slope)
    assert done.skipped and done.unit == 1
    assert {(group["next_unit"], group["skipped_steps"]) for group in groups} == {(1, 1)}
    assert [group["steps_since_search"] for group in groups] == [0, 0, 0]
    below = 0.2 * 1.1 * 0.9**10 if done.trials else 0.2
    assert [group["step_size"] for group in groups] == pytest.approx([0.2, below, 0.2])
    assert [group["located"] for group in groups] == [True, not done.trials, True]


def test_the_final_write_has_each_units_step_size():
    groups = found()
    for group, size in zip(groups, (0.1, 0.2, 0.3)):
        group["step_size"] = size
    assert turns.applied(groups, None) == [0.1, 0.2, 0.3]
    done = search(groups, ACCEPTED)
    assert turns.applied(groups, done) == pytest.approx([0.11, 0.2, 0.3])
    assert turns.applied(groups_of(), None) == 0.1
    window = turns.window_after(groups_of(), turns.begin(groups_of(), LineSearch))
    assert turns.applied(groups_of(), None, window) == 0.1


def test_a_newcomer():
    groups = found()
    search(groups, ACCEPTED)
    state = turns.newcomer(groups[0])
    assert state["step_size"] == groups[0]["step_size"] != 0.2
    assert state["smoothed_slope"] == state["smoothed_decrease"] == 0.0 and state["located"]
    groups[0]["located"] = False
    assert turns.newcomer(groups[0])["located"]
    assert not turns.newcomer(groups_of()[0])["located"]
    assert turns.newcomer({**groups[0], "units": "all"}) == {
        name: groups[0][name] for name in turns.STATE_NAMES
    }
