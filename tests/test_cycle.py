"""``units="groups"``: one step size for each parameter group, searched in turn (PLASLS)."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from models import assert_same, everything, make_closure, make_net
from torch import nn

from salsa_fused import FusedSaLSa, cycle
from salsa_fused.line_search import LineSearch, SearchSettings, SearchState

N = 3
PAPER = SearchSettings(
    c=0.3, backtrack=0.9, growth=1.1, growth_per="step", schedule="rate", init_step_size=0.1
)


# -- the bookkeeping, without a tensor --------------------------------------------------------


def groups_of(settings=PAPER, units="groups", **changes):
    state = SearchState.fresh(settings)._replace(**changes)
    return [{"units": units, **settings._asdict(), **state._asdict()} for _ in range(N)]


def search(groups, *losses, loss=1.0, slope=1.0):
    """One step: a search whose trials have these losses, or none where none is due."""
    if not cycle.is_due(groups, LineSearch):
        cycle.count_plain_step(groups, LineSearch)
        return None
    done = cycle.begin(groups, LineSearch)
    done.first_trial()
    done.start_from(loss, slope, 2.0**-23)
    for trial_loss in losses:
        if done.trying:
            done.report(trial_loss)
    assert not done.trying
    cycle.remember(groups, done)
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
        for name in cycle.OWN:
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
    fresh = cycle.begin(groups, LineSearch)
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
def test_the_cycle_moves_on_where_the_step_is_taken(losses):
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
def test_the_cycle_waits_where_the_step_is_skipped(loss, slope):
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
    assert cycle.applied(groups, None) == [0.1, 0.2, 0.3]
    done = search(groups, ACCEPTED)
    assert cycle.applied(groups, done) == pytest.approx([0.11, 0.2, 0.3])
    assert cycle.applied(groups_of(), None) == 0.1
    assert cycle.applied(groups_of(), cycle.begin(groups_of(), LineSearch)) == 0.1


def test_a_newcomer():
    groups = found()
    search(groups, ACCEPTED)
    state = cycle.newcomer(groups[0])
    assert state["step_size"] == groups[0]["step_size"] != 0.2
    assert state["smoothed_slope"] == state["smoothed_decrease"] == 0.0 and state["located"]
    groups[0]["located"] = False
    assert cycle.newcomer(groups[0])["located"]
    assert not cycle.newcomer(groups_of()[0])["located"]
    assert cycle.newcomer({**groups[0], "units": "all"}) == {
        name: groups[0][name] for name in SearchState._fields
    }


# -- the optimizer ----------------------------------------------------------------------------


def build(seed=0, **keywords):
    net = make_net(seed, norm=False)
    first, second = net[0], net[4]
    groups = [
        {"params": [first.weight], "weight_decay": 0.01},
        {"params": [first.bias, second.bias], "lr": 0.5},
        {"params": [second.weight], "betas": (0.8, 0.99)},
    ]
    keywords = {"units": "groups", "module": net, "check_replay": False, **keywords}
    return net, FusedSaLSa(groups, **keywords)


def train(net, optimizer, first, last):
    for step in range(first, last):
        torch.manual_seed(step)
        optimizer.step(make_closure(net, step))


def of_groups(optimizer):
    return [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]


BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])
ALONG = pytest.mark.parametrize("direction", ["adam", "sgd"])


@BACKENDS
@ALONG
def test_trials_move_one_unit_and_the_step_moves_all(backend, direction):
    net, optimizer = build(backend=backend, direction=direction, search_period=1, growth=2.0)
    units = []
    for step in range(40):
        torch.manual_seed(step)
        evaluate, seen = make_closure(net, step), []

        def closure(evaluate=evaluate, seen=seen, optimizer=optimizer):
            seen.append(of_groups(optimizer))
            return evaluate()

        due = optimizer.search_due
        optimizer.step(closure)
        unit = optimizer.last_search.unit
        if due:
            units.append(unit)
            assert optimizer.metrics()["unit"] == (-1 if unit is None else unit)
            for at_trial in seen[1:]:
                for index, (before, now) in enumerate(zip(seen[0], at_trial)):
                    moved = not all(map(torch.equal, before, now))
                    assert moved == (unit in (None, index))
        after = of_groups(optimizer)
        assert not any(torch.equal(a, b) for x, y in zip(seen[0], after) for a, b in zip(x, y))
    assert units[0] is None and units[1:] == [i % N for i in range(len(units) - 1)]
    assert len({group["step_size"] for group in optimizer.param_groups}) == N


def test_the_slope_is_the_units_and_the_step_has_its_own_step_size():
    net, optimizer = build(direction="sgd", weight_decay=0.1)
    train(net, optimizer, 0, 6)
    for step in range(6, 20):
        torch.manual_seed(step)
        before = of_groups(optimizer)
        due = optimizer.search_due
        optimizer.step(make_closure(net, step))
        unit = optimizer.last_search.unit
        for index, group in enumerate(optimizer.param_groups):
            slope = sum(p.grad.double().square().sum().item() for p in group["params"])
            if due and index == unit:
                assert optimizer.last_search.slope == pytest.approx(slope * group["lr"], rel=1e-6)
                assert optimizer.last_search.step_size == group["step_size"]
            for old, p in zip(before[index], group["params"]):
                step_size = group["lr"] * group["step_size"]
                expected = old - step_size * (p.grad + group["weight_decay"] * old)
                assert torch.allclose(p, expected, rtol=1e-5, atol=1e-6)


def test_the_first_group_alone_is_not_what_is_stepped():
    """Plain steps, too, have each unit's step size."""
    net, optimizer = build(direction="sgd", search_period=50)
    train(net, optimizer, 0, 12)
    assert not optimizer.search_due
    for group, size in zip(optimizer.param_groups, (0.1, 0.02, 0.3)):
        group["step_size"] = size
    before = of_groups(optimizer)
    train(net, optimizer, 12, 13)
    for old, group, size in zip(before, optimizer.param_groups, (0.1, 0.02, 0.3)):
        for weight, p in zip(old, group["params"]):
            decayed = p.grad + group["weight_decay"] * weight
            assert torch.allclose(p, weight - size * group["lr"] * decayed, atol=1e-6)


def test_a_unit_without_gradient_is_passed_over():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = FusedSaLSa([{"params": [used]}, {"params": [unused]}], units="groups")
    outcomes = []
    for _ in range(7):
        optimizer.step(lambda: (used - 0.1).square().sum())
        last = optimizer.last_search
        outcomes.append((last.unit, last.outcome if last.unit == 1 else "", last.trials > 0))
    assert outcomes[1:5] == [(0, "", True), (1, "flat", False)] * 2
    assert unused.tolist() == [1.0] * 3 and unused not in optimizer.state


def test_a_group_without_factor_is_passed_over():
    net, optimizer = build()
    optimizer.param_groups[1]["lr"] = 0.0
    train(net, optimizer, 0, 9)
    assert optimizer.param_groups[1]["smoothed_slope"] == 0.0
    assert optimizer.param_groups[2]["smoothed_slope"] > 0.0


def test_one_group_is_one_unit():
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters(), units="groups")
    train(net, optimizer, 0, 15)
    assert optimizer.last_search.unit == 0


@BACKENDS
def test_an_exception_at_a_trial_of_a_unit_undoes_it(backend):
    net, optimizer = build(backend=backend)
    train(net, optimizer, 0, 5)
    for number in (2, 3, 4):
        before = everything(net, optimizer)
        evaluate, calls = make_closure(net, 5), 0

        def closure(evaluate=evaluate, number=number):
            nonlocal calls
            calls += 1
            if calls == number:
                raise RuntimeError("mine")
            loss = evaluate()
            return loss if calls == 1 else loss + 10.0

        with pytest.raises(RuntimeError, match="mine"):
            optimizer.step(closure)
        assert_same(before, everything(net, optimizer))
    train(net, optimizer, 5, 6)


def test_a_skipped_search_of_a_unit_leaves_weights_and_moments():
    net, optimizer = build()
    train(net, optimizer, 0, 5)
    before = everything(net, optimizer)
    unit = optimizer.param_groups[0]["next_unit"]
    evaluate = make_closure(net, 5)

    def closure():
        return evaluate() if torch.is_grad_enabled() else evaluate() * math.inf

    optimizer.step(closure)
    after = everything(net, optimizer)
    assert all(map(torch.equal, before[0], after[0])) and before[2] == after[2]
    assert optimizer.last_search[:2] == (10, "non_finite") and optimizer.last_search.unit == unit
    assert optimizer.search_due and optimizer.param_groups[0]["next_unit"] == unit


# -- checkpoints ------------------------------------------------------------------------------


def _loaded(net, optimizer):
    other_net, other = build(seed=99, c=0.123)
    other_net.load_state_dict(net.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other_net, other


@pytest.mark.parametrize("at", [0, 1, 7, 23])
@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair)), lambda p: _loaded(*p)]
)
@pytest.mark.parametrize("schedule", ["doubling", "rate"])
def test_a_copied_run_continues_bit_for_bit(copy_of, at, schedule):
    net, optimizer = build(schedule=schedule, growth_per="step", growth=1.01)
    train(net, optimizer, 0, at)
    other_net, other = copy_of((net, optimizer))
    train(net, optimizer, at, 40)
    train(other_net, other, at, 40)
    assert_same(everything(net, optimizer), everything(other_net, other))
    assert other.last_search == optimizer.last_search


def test_units_of_a_checkpoint_win():
    net, optimizer = build()
    train(net, optimizer, 0, 5)
    _, other = build(units="all")
    other.load_state_dict(optimizer.state_dict())
    assert {group["units"] for group in other.param_groups} == {"groups"}


def test_the_state_of_torchs_adam_begins_with_a_search_of_all():
    net, optimizer = build()
    train(net, optimizer, 0, 5)
    adam = torch.optim.Adam([{"params": group["params"]} for group in optimizer.param_groups])
    make_closure(net)().backward()
    adam.step()
    optimizer.load_state_dict(adam.state_dict())
    train(net, optimizer, 5, 6)
    assert optimizer.last_search.unit is None
    train(net, optimizer, 6, 7)
    assert optimizer.last_search.unit == 0


def test_a_group_added_in_mid_run_takes_its_turn_last():
    net, optimizer = build()
    train(net, optimizer, 0, 3)
    extra = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 0.25})
    group = optimizer.param_groups[-1]
    assert group["step_size"] == optimizer.step_size and group["located"]
    assert group["smoothed_slope"] == group["smoothed_decrease"] == 0.0
    units = []
    for step in range(3, 8):
        evaluate = make_closure(net, step)
        optimizer.step(lambda e=evaluate: e() + extra.square().sum())
        units.append(optimizer.last_search.unit)
    assert units == [2, 3, 0, 1, 2]
    assert optimizer.state[extra]["step"] == 5


def test_a_group_added_before_the_first_search():
    net, optimizer = build()
    extra = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra]})
    for step in range(2):
        evaluate = make_closure(net, step)
        optimizer.step(lambda e=evaluate: e() + extra.square().sum())
    assert optimizer.last_search.unit == 0


def test_maximize():
    net, optimizer = build(maximize=True)
    evaluate = make_closure(net)
    values = [optimizer.step(lambda: -evaluate()).item() for _ in range(30)]
    assert values[-1] > values[0] and optimizer.last_search.loss == pytest.approx(values[-1])
