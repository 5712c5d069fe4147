"""The optimizer with ``units="groups"``: trials of one group, checkpoints, later groups."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from seeds import seed_torch
from small_net import make_closure, make_net
from snapshots import assert_same, everything
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.line_search import SearchSettings

N = 3
PAPER = SearchSettings(
    c=0.3, backtrack=0.9, growth=1.1, growth_per="step", schedule="rate", init_step_size=0.1
)


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
        seed_torch(step)
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
        seed_torch(step)
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
        seed_torch(step)
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
def test_a_copied_run_continues_bit_for_bit(copy_of, at):
    net, optimizer = build(schedule="rate", growth_per="step", growth=1.01)
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
