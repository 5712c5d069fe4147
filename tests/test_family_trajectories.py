"""The other systems of the family against their float64 references over hundreds of noisy steps."""

from __future__ import annotations

import pytest
import torch
from problems import NegatedProblem, NoisyProblem, both, copy_state, distance, follow, step_sizes

from salsa_fused import settings

SYSTEMS = {
    "SGD+SaLSa": settings.SGD_SALSA,
    "SGD, defaults": {"direction": "sgd"},
    "Adam+SLS": settings.ADAM_SLS,
    "SGD+SLS": settings.SGD_SLS,
    "PLASLS": {"units": "groups"},
    "PLASLS, the paper's constants": {**settings.PAPER, "units": "groups"},
    "PLASLS, SGD": {"units": "groups", "direction": "sgd"},
    "LAMB": {"direction": "lamb", "trust_clip": None},
    "LAMBC": {"direction": "lamb", "trust_clip": 0.3},
    "LAMBC, no look back": {"direction": "lamb", "trust_clip": 0.3, "look_back": False},
    "LAMBC, clipped": {"direction": "lamb", "max_grad_norm": 0.5},
    "LAMBC, total_steps": {"direction": "lamb", "total_steps": 200},
    "SGD, total_steps": {"direction": "sgd", "total_steps": 200},
    "PLASLS, total_steps": {"units": "groups", "total_steps": 200},
    "LAMBC, the paper's constants": {**settings.PAPER, "direction": "lamb"},
    "LAMBC, PLASLS": {"direction": "lamb", "units": "groups"},
}
WITHOUT_SEARCH = {"search_period": None, "init_step_size": 0.02}
on_every_system = pytest.mark.parametrize("name", SYSTEMS)


@on_every_system
def test_float64_follows_the_reference(name):
    outcomes = follow(NoisyProblem(), backend="reference", tolerance=1e-8, **SYSTEMS[name])
    assert outcomes >= {"accepted", "exhausted", "flat"}  # the problem is not too easy


@pytest.mark.parametrize("name", ["LAMB", "LAMBC", "LAMBC, clipped", "LAMBC, total_steps"])
def test_lamb_of_one_group_and_to_maximize(name):
    for cls, keywords in (
        (NoisyProblem, {"groups": [{"params": range(5), "weight_decay": 0.02}]}),
        (NegatedProblem, {"maximize": True}),
    ):
        follow(cls(), backend="reference", tolerance=1e-8, **SYSTEMS[name], **keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {"direction": "sgd"},
        {"direction": "lamb"},
        {"direction": "lamb", "eps": 1e-6},
        {"direction": "adam", "total_steps": 200},
    ],
)
@pytest.mark.parametrize("trust_clip", [None, 0.3])
def test_without_a_search(keywords, trust_clip):
    keywords = {**WITHOUT_SEARCH, **keywords, "trust_clip": trust_clip}
    groups = [{"params": range(5), "eps": keywords.pop("eps", 1e-8), "weight_decay": 0.1}]
    follow(NoisyProblem(), groups=groups, backend="reference", **keywords)


RESOLUTION = 8 * 2.0**-23


def follow_in_fp32(name, backend, steps):
    """From equal state at every step; returns how often rounding could turn the decision."""
    problem = NoisyProblem(events=False)
    weights, optimizer, reference = both(
        problem, dtype=torch.float32, backend=backend, **SYSTEMS[name]
    )
    undecided = 0
    for step in range(steps):
        copy_state(optimizer, weights, reference)
        torch.manual_seed(step)
        optimizer.step(problem.closure(weights, step))
        record = reference.step(
            problem.loss_and_grads(step), problem.loss_at(step), resolution=RESOLUTION
        )
        noise = (1.0 - reference.beta3) * RESOLUTION * record.loss
        near = any(abs(t.lhs - t.rhs) < max(1e-4 * t.rhs, noise) for t in record.trials)
        if near or record.outcome == "flat":
            undecided += 1
            continue
        found = [group["step_size"] for group in optimizer.param_groups]
        assert found == pytest.approx(step_sizes(reference), rel=1e-6), step
        assert distance(weights, reference) < 1e-5, step
    assert {launch.backend.name for launch in optimizer._table.launches} == {backend}
    return undecided


@on_every_system
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_fp32_takes_the_same_decision_from_the_same_state(name, backend):
    assert follow_in_fp32(name, backend, 300) < 5
