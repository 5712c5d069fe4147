"""FusedSaLSa against the independent float64 reference over noisy steps."""

from __future__ import annotations

import copy

import pytest
import torch
from follow_reference import STEPS, both, copy_state, distance, follow, shrink_step_size
from noisy_problem import GROUPS, NegatedProblem, NoisyProblem, ProblemWithNaN
from reference import DEFAULTS as REFERENCE_DEFAULTS
from reference import PAPER as REFERENCE_PAPER
from seeds import seed_torch

from salsa_fused import settings

ONE_GROUP = [{"params": range(5)}]
LONG = {"defaults": 300, "seldom": 300}  # steps; the others take STEPS
SETTINGS = {
    "defaults": {},
    "no look back": {"look_back": False},
    "paper": settings.PAPER,
    "paper, looking back": {**settings.PAPER, "look_back": True},
    "unsmoothed": {"betas": (0.9, 0.999, 0.0), "search_period": 1},
    "per-step-doubling": {"growth_per": "step", "search_period": (2, 7), "max_trials": 3},
    "clipped": {"max_grad_norm": 0.5},
    "total_steps": {"total_steps": 90},  # of 130
    "total_steps, no look back": {"total_steps": 101, "look_back": False},
    "seldom": {"search_period": (30, 90)},  # many looks of plain steps between two searches
}


@pytest.mark.parametrize("name", SETTINGS)
def test_float64_follows_the_reference(name):
    steps = LONG.get(name, STEPS)
    outcomes = follow(NoisyProblem(), steps=steps, backend="reference", **SETTINGS[name])
    assert outcomes >= {"accepted", "exhausted", "flat"}  # the problem is not too easy


@pytest.mark.parametrize("name", ["defaults", "paper", "clipped"])
def test_one_group_follows_the_reference(name):
    follow(NoisyProblem(), groups=ONE_GROUP, backend="reference", **SETTINGS[name])


def test_a_weight_without_gradient_when_a_window_begins():
    """At t = 10, the first one: its way began at its first step; then it keeps its w_a."""
    problem = NoisyProblem(events=False, missing=2)
    weights, optimizer, _ = both(problem, groups=GROUPS, backend="reference")
    for step in range(10):
        optimizer.step(problem.closure(weights, step))
    for missing in range(7):
        follow(NoisyProblem(missing=missing), steps=90, groups=GROUPS, backend="reference")


@pytest.mark.parametrize("when", [4, 70])
def test_the_step_size_falls_to_a_thousandth(when):
    """What is applied is 38 step sizes at most."""
    keywords = {"before_step": shrink_step_size(when), "groups": GROUPS, "backend": "reference"}
    follow(NoisyProblem(), **keywords)


@pytest.mark.parametrize("first", [1, 7, 12, 40])
def test_factors_of_zero_at_first(first):
    """No search before: no first move; and the first window may begin later."""

    def set_factor(step, optimizer, reference):
        for ours, theirs in zip(optimizer.param_groups, reference.groups):
            ours["lr"] = theirs["lr"] = 0.0 if step < first else 0.5 + 0.5 * (step % 3)

    problem = NoisyProblem(long_flat=0)
    follow(problem, before_step=set_factor, groups=ONE_GROUP, backend="reference")


@pytest.mark.parametrize("loads", [False, True])
@pytest.mark.parametrize("name", ["defaults", "seldom"])
def test_to_save_the_state_changes_nothing(name, loads):
    """Looks of plain steps are entered then, and not again with the next search."""

    def save(step, optimizer, reference):
        if step % 5 == 3:
            state = optimizer.state_dict()
            reference.looks.enter_waiting()
            if loads:
                optimizer.load_state_dict(copy.deepcopy(state))

    keywords = {"groups": GROUPS, "backend": "reference", **SETTINGS[name]}
    steps = 200 if name == "seldom" else 90
    follow(NoisyProblem(), steps=steps, before_step=save, **keywords)


@pytest.mark.parametrize("name", ["defaults", "seldom", "no look back"])
def test_losses_that_are_not_numbers(name):
    follow(ProblemWithNaN(), groups=GROUPS, backend="reference", **SETTINGS[name])


@pytest.mark.parametrize("name", ["defaults", "clipped", "total_steps", "no look back"])
def test_maximize(name):
    keywords = {**SETTINGS[name], "maximize": True}
    follow(NegatedProblem(), groups=GROUPS, backend="reference", **keywords)


def test_settings_are_those_of_the_reference():
    """Defaults and PAPER were written down twice, independently."""
    for ours, theirs in (({}, REFERENCE_DEFAULTS), (settings.PAPER, REFERENCE_PAPER)):
        _, optimizer, _ = both(NoisyProblem(), groups=ONE_GROUP, **ours)
        assert {name: optimizer.param_groups[0][name] for name in theirs} == theirs


@pytest.mark.parametrize("name", ["defaults", "no look back", "total_steps", "paper"])
def test_fp32_takes_the_same_decision_from_the_same_state(name):
    """The C++ kernels: they give the bits of `reference` (test_kernels.py)."""
    problem = NoisyProblem()
    weights, optimizer, reference = both(
        problem, dtype=torch.float32, backend="native", **SETTINGS[name]
    )
    undecided = 0
    for step in range(STEPS):
        copy_state(optimizer, weights, reference)
        seed_torch(step)
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
        if reference.look_back:
            found = optimizer.param_groups[0]["applied_step_size"]
            assert found == pytest.approx(reference.looks.a, rel=1e-3), step  # r's grain
        assert distance(weights, reference) < 1e-5, step
    assert undecided < 25  # flat ones, mostly


def test_fp32_free_run():
    problem = NoisyProblem(events=False)
    weights, optimizer, reference = both(problem, dtype=torch.float32, backend="native")
    for step in range(300):
        seed_torch(step)
        optimizer.step(problem.closure(weights, step))
        reference.step(problem.loss_and_grads(step), problem.loss_at(step), resolution=8 * 2.0**-23)
    assert distance(weights, reference) < 5e-3
