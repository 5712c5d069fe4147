"""FusedSaLSa against the independent float64 reference over hundreds of noisy steps."""

from __future__ import annotations

import pytest
import torch
from problems import GROUPS, NoisyProblem, both, copy_state, distance, follow
from reference import DEFAULTS as REFERENCE_DEFAULTS
from reference import PAPER as REFERENCE_PAPER

from salsa_fused import settings

ONE_GROUP = [{"params": range(5)}]
SETTINGS = {
    "defaults": {},
    "paper": settings.PAPER,
    "unsmoothed": {"betas": (0.9, 0.999, 0.0), "search_period": 1},
    "per-step-doubling": {"growth_per": "step", "search_period": (2, 7), "max_trials": 3},
}


@pytest.mark.parametrize("groups", [ONE_GROUP, GROUPS], ids=["one group", "three groups"])
@pytest.mark.parametrize("name", SETTINGS)
def test_float64_follows_the_reference(name, groups):
    outcomes = follow(NoisyProblem(), groups=groups, backend="reference", **SETTINGS[name])
    assert outcomes >= {"accepted", "exhausted", "flat"}  # the problem is not too easy


def test_settings_are_those_of_the_reference():
    """Defaults and PAPER were written down twice, independently."""
    for ours, theirs in (({}, REFERENCE_DEFAULTS), (settings.PAPER, REFERENCE_PAPER)):
        _, optimizer, _ = both(NoisyProblem(), groups=ONE_GROUP, **ours)
        assert {name: optimizer.param_groups[0][name] for name in theirs} == theirs


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", ["defaults", "paper"])
def test_fp32_takes_the_same_decision_from_the_same_state(name, backend):
    problem = NoisyProblem()
    weights, optimizer, reference = both(
        problem, dtype=torch.float32, backend=backend, **SETTINGS[name]
    )
    undecided = 0
    for step in range(300):
        copy_state(optimizer, weights, reference)
        torch.manual_seed(step)
        optimizer.step(problem.closure(weights, step))
        record = reference.step(
            problem.loss_and_grads(step), problem.loss_at(step), resolution=8 * 2.0**-23
        )
        if (
            any(abs(t.lhs - t.rhs) < 1e-4 * t.rhs for t in record.trials)
            or record.outcome == "flat"
        ):
            undecided += 1
            continue
        assert optimizer.step_size == pytest.approx(reference.eta, rel=1e-6), step
        assert distance(weights, reference) < 1e-5, step
    assert undecided < 30  # flat ones, mostly


def test_fp32_free_run():
    problem = NoisyProblem(events=False)
    weights, optimizer, reference = both(problem, dtype=torch.float32, backend="native")
    for step in range(300):
        torch.manual_seed(step)
        optimizer.step(problem.closure(weights, step))
        reference.step(problem.loss_and_grads(step), problem.loss_at(step), resolution=8 * 2.0**-23)
    assert distance(weights, reference) < 5e-3
