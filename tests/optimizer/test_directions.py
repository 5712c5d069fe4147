"""The numbers that a direction has of its own, and moments of one direction that another one loads.

Nothing here takes a step.
"""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels.directions import DIRECTIONS


def weight(n=3):
    return nn.Parameter(torch.ones(n))


def build(direction="ademamix", n_groups=1, **keywords):
    groups = [{"params": [weight()]} for _ in range(n_groups)]
    return FusedSaLSa(groups, direction=direction, **keywords)


def numbers(optimizer):
    return [(group["alpha"], group["slow_beta"]) for group in optimizer.param_groups]


def copied(optimizer):
    """Through a pickle, a copy and a state dict."""
    loaded = build(alpha=1.0)
    loaded.load_state_dict(optimizer.state_dict())
    return [pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer), loaded]


# -- own numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_group_has_its_directions_numbers_and_no_others(direction):
    every = {name for one in DIRECTIONS.values() for name in one.constants}
    (group,) = build(direction).param_groups
    found = {name: group[name] for name in group.keys() & every}
    assert found == dict(DIRECTIONS[direction].constants)


def test_given_numbers_are_kept_as_pythons_own():
    optimizer = build(alpha=torch.tensor(8), slow_beta=0)
    assert numbers(optimizer) == [(8.0, 0.0)]
    assert {type(number) for number in numbers(optimizer)[0]} <= {int, float}
    for other in copied(optimizer):
        assert numbers(other) == [(8.0, 0.0)]


def test_a_group_may_name_its_own():
    optimizer = FusedSaLSa(
        [{"params": [weight()], "alpha": 2.0}, {"params": [weight()]}],
        direction="ademamix",
        slow_beta=0.99,
    )
    optimizer.add_param_group({"params": [weight()], "slow_beta": 0.5})
    assert numbers(optimizer) == [(2.0, 0.99), (5.0, 0.99), (5.0, 0.5)]


@pytest.mark.parametrize(
    "direction, takes",
    [("adam", "no numbers of its own"), ("sgd", "no numbers"), ("ademamix", "alpha, slow_beta")],
)
def test_numbers_that_a_direction_does_not_have(direction, takes):
    message = rf"unexpected keyword argument 'gamma' \(direction='{direction}' takes {takes}"
    with pytest.raises(TypeError, match=message):
        build(direction, gamma=1.0)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"alpha": -1.0}, "alpha must be >= 0 and finite, got -1.0"),
        ({"alpha": math.inf}, "alpha must be >= 0 and finite, got inf"),
        ({"alpha": math.nan}, "alpha must be >= 0 and finite"),
        ({"alpha": "large"}, "alpha must be a number, got 'large'"),
        ({"slow_beta": 1.0}, r"slow_beta must lie in \[0, 1\), got 1.0"),
        ({"slow_beta": -0.5}, r"slow_beta must lie in \[0, 1\)"),
    ],
)
def test_numbers_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        build(**given)
    optimizer = build()
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [weight()], **given})
    assert len(optimizer.param_groups) == 1


# -- checkpoints ------------------------------------------------------------------------------


def test_numbers_that_an_earlier_checkpoint_lacks():
    saved = build().state_dict()
    del saved["param_groups"][0]["alpha"]
    optimizer = build(alpha=2.0)
    optimizer.load_state_dict(saved)
    assert numbers(optimizer) == [(5.0, 0.9999)]


def test_the_loaded_direction_has_its_own_numbers_and_no_others():
    optimizer = build()
    with pytest.warns(UserWarning, match="direction='ademamix' by 'lion'"):
        optimizer.load_state_dict(build("lion").state_dict())
    (group,) = optimizer.param_groups
    assert group["direction"] == "lion" and "alpha" not in group
    optimizer = build("lion")
    with pytest.warns(UserWarning, match="direction='lion' by 'ademamix'"):
        optimizer.load_state_dict(build(alpha=3.0).state_dict())
    optimizer.add_param_group({"params": [weight()]})
    assert numbers(optimizer) == [(3.0, 0.9999), (5.0, 0.9999)]


def of_adam(**changes):
    """The state of torch's Adam after a step."""
    parameter = weight()
    adam = torch.optim.Adam([parameter], **changes)
    parameter.grad = torch.ones(3)
    adam.step()
    return adam.state_dict()


@pytest.mark.parametrize("direction", ["adam", "lamb"])
def test_adams_state_fits(direction):
    optimizer = build(direction)
    optimizer.load_state_dict(of_adam())
    (entry,) = optimizer.state.values()
    assert entry.keys() == {"step", "exp_avg", "exp_avg_sq"} and entry["step"] == 1


def test_moments_that_a_direction_does_not_keep_are_dropped():
    optimizer = build("lion")
    with pytest.warns(UserWarning, match='holds exp_avg_sq, .* not use with direction="lion"'):
        optimizer.load_state_dict(of_adam())
    (entry,) = optimizer.state.values()
    assert entry.keys() == {"step", "exp_avg"}
    with pytest.warns(UserWarning, match=r"holds max_exp_avg_sq, .* \(amsgrad's maximum\?\)"):
        build("adam").load_state_dict(of_adam(amsgrad=True))


def test_moments_that_a_direction_misses():
    optimizer = build()
    message = 'lacks exp_avg_slow: .* not the state of FusedSaLSa with direction="ademamix"'
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(of_adam())
    assert not optimizer.state
