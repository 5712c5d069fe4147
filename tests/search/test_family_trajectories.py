"""The other systems of the family against their float64 references over noisy steps."""

from __future__ import annotations

import pytest
from family_systems import SYSTEMS
from follow_reference import follow, follow_in_fp32
from noisy_problem import NegatedProblem, NoisyProblem

WITHOUT_SEARCH = {"search_period": None, "init_step_size": 0.02}
on_every_system = pytest.mark.parametrize("name", SYSTEMS)


@on_every_system
def test_float64_follows_the_reference(name):
    outcomes = follow(NoisyProblem(), backend="reference", tolerance=1e-8, **SYSTEMS[name])
    assert outcomes >= {"accepted", "exhausted", "flat"}  # the problem is not too easy


@pytest.mark.parametrize(
    "name", ["LAMB", "LAMBC", "LAMBC, clipped", "LAMBC, total_steps", "Lion", "AdEMAMix"]
)
def test_one_group_and_to_maximize(name):
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
        {"direction": "adam", "total_steps": 40},
    ],
)
@pytest.mark.parametrize("trust_clip", [None, 0.3])
def test_without_a_search(keywords, trust_clip):
    keywords = {**WITHOUT_SEARCH, **keywords, "trust_clip": trust_clip}
    groups = [{"params": range(5), "eps": keywords.pop("eps", 1e-8), "weight_decay": 0.1}]
    follow(NoisyProblem(), steps=60, groups=groups, backend="reference", **keywords)


@on_every_system
def test_fp32_takes_the_same_decision_from_the_same_state(name):
    """The C++ kernels: they give the bits of `reference` (test_kernels.py)."""
    assert follow_in_fp32("native", **SYSTEMS[name]) < 5
