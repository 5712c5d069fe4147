"""What is said of a state that does not fit, or that replaces settings."""

from __future__ import annotations

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from small_net import make_closure, make_net
from snapshots import assert_same, everything

from salsa_fused import FusedSaLSa


def weight(*shape, **keywords):
    return torch.ones(*(shape or (3,)), requires_grad=True, **keywords)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "number of parameter groups"),
        (lambda s: s["param_groups"][0]["params"].pop(), "doesn't match the size"),
        (lambda s: s["state"][0].update(exp_avg=torch.ones(2)), "exp_avg of parameter 0.*shape"),
        (lambda s: s["state"][0].pop("exp_avg"), "lacks exp_avg"),
    ],
)
def test_a_state_that_does_not_fit(change, message):
    net = make_net()
    optimizer = FusedSaLSa(net.parameters())
    optimizer.step(make_closure(net))
    saved = optimizer.state_dict()
    saved = {
        "state": {key: dict(entry) for key, entry in saved["state"].items()},
        "param_groups": [{**g, "params": [*g["params"]]} for g in saved["param_groups"]],
    }
    change(saved)
    before = everything(net, optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert_same(before, everything(net, optimizer))


SETTINGS = {
    "c": 0.3,
    "betas": (0.9, 0.999, 0.9),
    "backtrack": 0.5,
    "growth": 1.5,
    "growth_per": "step",
    "init_step_size": 0.1,
    "schedule": "rate",
    "search_period": None,
    "max_trials": 5,
    "maximize": True,
    "direction": "sgd",
    "units": "groups",
    "trust_clip": 2.0,
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("there", [False, True])
def test_a_setting_that_a_checkpoint_replaces(name, there):
    def saved_by(**keywords):
        return FusedSaLSa([weight(), weight()], **keywords).state_dict()

    changed = {name: SETTINGS[name]}
    saved, optimizer = saved_by(), FusedSaLSa([weight(), weight()], **changed)
    if there:
        saved, optimizer = saved_by(**changed), FusedSaLSa([weight(), weight()])
    key = "beta3" if name == "betas" else name
    here, loaded = optimizer.param_groups[0][key], saved["param_groups"][0][key]
    assert here != loaded
    message = f"settings that this optimizer was built with: {key}={here!r} by {loaded!r}. "
    with pytest.warns(UserWarning, match=re.escape(message)) as seen:
        optimizer.load_state_dict(saved)
    assert len(seen) == 1 and seen[0].filename == __file__
    assert optimizer.param_groups[0][key] == loaded
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(saved)  # as it is already


def test_several_settings_that_a_checkpoint_replaces():
    saved = FusedSaLSa([weight()], search_period=4, direction="sgd").state_dict()
    optimizer = FusedSaLSa([weight()])
    both = r"search_period=\(1, 10\) by \(4, 4\), direction='adam' by 'sgd'. To keep one"
    with pytest.warns(UserWarning, match=both):
        optimizer.load_state_dict(saved)


def test_what_the_warning_of_replaced_settings_proposes():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    for step in range(3):
        optimizer.step(make_closure(net, step))
    saved = optimizer.state_dict()
    proposals = "set it in the state dict's param_groups before, or load the moments alone, "
    proposals += r"\{'state': loaded\['state'\], 'param_groups': optimizer.state_dict\(\)\['param"
    other = FusedSaLSa(net.parameters(), search_period=None, init_step_size=1e-3)
    with pytest.warns(UserWarning, match=proposals):
        other.load_state_dict(saved)
    assert other.search_due
    for alone in (False, True):
        other = FusedSaLSa(net.parameters(), search_period=None, init_step_size=1e-3)
        if alone:
            changed = {"state": saved["state"], "param_groups": other.state_dict()["param_groups"]}
        else:
            changed = copy.deepcopy(saved)
            for group in changed["param_groups"]:
                group["search_period"], group["init_step_size"] = None, 1e-3
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other.load_state_dict(changed)
        assert not other.search_due
        assert other.step_size == (1e-3 if alone else optimizer.step_size)
        assert other.state[net[0].weight]["step"] == 3


def test_what_a_checkpoint_replaces_silently():
    """As in torch; and settings that are equal, also as a list or as NumPy's numbers."""
    saved = FusedSaLSa(
        [weight()], lr=0.5, betas=(0.8, 0.9, 0.99), eps=1e-6, weight_decay=0.1
    ).state_dict()
    saved["param_groups"][0].update(search_period=[1, 10], c=np.float64(0.5))
    optimizer, adam = FusedSaLSa([weight()]), torch.optim.AdamW([weight()], maximize=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(saved)
        optimizer.load_state_dict(adam.state_dict())
    assert optimizer.param_groups[0]["eps"] == 1e-6
