"""`bench paper`: what seeds say about a claim, and the verdict."""

from __future__ import annotations

import math

import pytest
from made_results import made

from bench.paper import evidence
from bench.paper.claims import verdict
from bench.paper.evidence import Evidence
from bench.results import Results


def speaks(measure: evidence.Measure, found: Results) -> list[int]:
    return [one.speaks for one in measure(found)]


def test_an_interval_by_students_t():
    # 2.776 is t's 97.5 % quantile with four degrees of freedom
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    wide = 2.776 * math.sqrt(2.5) / math.sqrt(5)
    assert evidence.interval(values) == pytest.approx((3, 3 - wide, 3 + wide), abs=1e-3)
    assert evidence.interval([2.0]) == (2.0, -math.inf, math.inf)


def test_two_values_decide_nothing():
    found = made("loss", {"a": {"Ours": [1.0, 1.0], "Other": [2.0, 2.0]}})
    assert speaks(evidence.ratio("loss", "Ours", "Other"), found) == [0]
    assert evidence.ratio("loss", "Ours", "Other")(found)[0].figure == "0.50"  # without ends
    assert evidence.interval([1.0, 1.0]) == (1.0, -math.inf, math.inf)


def test_a_ratio_is_taken_seed_by_seed():
    lower = {"Ours": [1.0, 10.0, 100.0], "Other": [2.0, 20.5, 199.0]}  # a half, whatever the seed
    same = {"Ours": [1.0, 2.0, 3.0], "Other": [1.1, 1.9, 3.0]}
    close = {"Ours": [1.0, 2.0, 3.01], "Other": [1.0, 2.01, 3.0]}
    higher = {"Ours": [2.0, 20.5, 199.0], "Other": [1.0, 10.0, 100.0]}
    cases = {"a": lower, "b": same, "c": close, "d": higher, "e": {"Ours": [1.0, 1.0, 1.0]}}
    found = made("loss", cases)
    assert speaks(evidence.ratio("loss", "Ours", "Other"), found) == [1, 0, 0, -1]
    # the interval of "same" goes beyond 1.05
    assert speaks(evidence.ratio("loss", "Ours", "Other", no_higher=True), found) == [1, 0, 1, -1]
    first, *_ = evidence.ratio("loss", "Ours", "Other")(found)
    assert first.problem == "A" and first.n == 3 and first.figure.startswith("0.50 (0.")


@pytest.mark.parametrize("bad", [[math.nan], [math.inf, 1e-4], [5.0, 107.9]], ids=str)
def test_runs_that_blew_up_speak_against_however_wide_the_interval(bad):
    ours = [1e-5, 1.1e-5, 0.9e-5, 1e-5, 1.2e-5]
    ours[: len(bad)] = bad
    values = {"Ours": ours, "Other": [1e-4, 1.1e-4, 1e-4, 0.9e-4, 1e-4]}
    found = made("loss", {"a": values, "b": {**values, "Other": [math.nan] * 2 + ours[2:]}})
    one, both = evidence.ratio("loss", "Ours", "Other", no_higher=True)(found)
    failed = sum(not value < 1 for value in bad)
    assert one.speaks == -1 and f"{failed} of 5 runs blew up" in one.figure
    assert both.speaks >= 0  # no more of ours than of theirs
    still_lower = {"Ours": [1e-9, 1e-9, 1e-9, 1e-9, 1e-6], "Other": [1.0, 1.1, 1.0, 0.9, 1.0]}
    assert speaks(evidence.ratio("loss", "Ours", "Other"), made("loss", {"a": still_lower})) == [1]


def test_over_all_problems():
    cases = {"a": {"Ours": [1.0, 1.1, 1.0], "Other": [4.0, 4.0, 4.1]},
             "b": {"Ours": [2.0, 2.0, 2.1], "Other": [1.0, 1.0, 1.0]},
             "c": {"Ours": [0.0]}}  # fmt: skip
    (one,) = evidence.overall("loss", "Ours", "Other")(made("loss", cases))
    assert one.figure.startswith("0.7") and one.speaks == 1  # the root of 1/4 times 2
    (one,) = evidence.overall_gain("share", "Ours", "Other")(made("share", cases))
    assert one.figure.startswith("-9") and one.speaks == -1 and one.n == 3


def test_a_gain_is_in_points():
    values = {"Ours": [0.91, 0.92, 0.93], "Other": [0.90, 0.91, 0.915]}
    (one,) = evidence.gain("accuracy", "Ours", "Other")(made("accuracy", {"a": values}))
    assert one.speaks == 1 and one.figure.startswith("1.17 points (")


def test_steadier_needs_a_ratio_that_few_seeds_can_show():
    # the F distribution's 97.5 % quantile with four and four degrees of freedom is 9.60
    wild = [1.0, 2.0, 4.0, 8.0, 16.0]
    calm, little = [x**0.3 for x in wild], [x**0.4 for x in wild]
    found = made("step", {"a": {"Ours": calm, "Other": wild}, "b": {"Ours": little, "Other": wild}})
    assert speaks(evidence.steadier("step", "Ours", "Other"), found) == [1, 0]
    assert speaks(evidence.steadier("step", "Other", "Ours"), found) == [-1, 0]


def test_within_bounds():
    shares = {"a": [0.03, 0.031, 0.03], "b": [0.07, 0.0701, 0.07], "c": [0.05, 0.05, 0.09]}
    found = made("overhead", {case: {"Ours": values} for case, values in shares.items()})
    assert speaks(evidence.within("overhead", "Ours", 0, 6), found) == [1, -1, 0]
    assert speaks(evidence.within("overhead", "Ours", 0, 6, ["b", "other"]), found) == [-1]


def test_the_best_of_some_settings():
    here = {"x": [1.0, 1.0, 1.1], "y": [3.0, 3.1, 3.0], "z": [2.0, 2.1, 2.0]}
    there = {"x": [3.0, 3.01, 3.0], "y": [4.0, 4.0, 4.0], "z": [2.0, 2.0, 2.1]}
    tied = {"x": [1.0, 2.0, 3.0], "y": [4.0, 4.0, 4.0], "z": [1.0, 2.01, 2.99]}
    found = made("loss", {"a": here, "b": there, "c": tied, "d": {"x": [1.0, 1.0]}})
    assert speaks(evidence.best_of("loss", ("x", "y"), ("z",)), found) == [1, -1, 0]


def test_settings_that_are_alike():
    alike = {"x": [1.0, 1.01, 1.0], "y": [1.1, 1.1, 1.11], "z": [1.05, 1.0, 1.0]}
    apart = {**alike, "z": [2.0, 2.1, 2.0]}
    found = made("loss", {"a": alike, "b": apart})
    assert speaks(evidence.alike("loss", ("x", "y", "z"), 1.25), found) == [1, -1]


def test_ranks_by_seed():
    first = {"x": [1.0, 3.0], "y": [2.0, 2.0], "z": [3.0, 1.0]}
    second = {"x": [1.0, 1.0], "y": [1.0, 2.0], "z": [3.0, 3.0]}
    found = made("loss", {"a": first, "b": second, "c": {"x": [0.0, 0.0]}})
    ranks = evidence.mean_ranks(found, "loss", ("x", "y", "z"), 1)
    assert ranks == {"x": [1.25, 2.0], "y": [1.75, 2.0], "z": [3.0, 2.0]}
    assert evidence.mean_ranks(found, "loss", ("x", "z"), -1)["x"] == [2.0, 1.5]


def test_the_exponent_of_a_power():
    def family(name: str, powers: list[float]) -> dict[str, dict[str, list[float]]]:
        return {f"{name}-b{b}": {"Ours": [3 * b**power for power in powers]} for b in (4, 16, 64)}

    near, low, wide = (family("gpt", [0.5, 0.52, 0.48]), family("cnn", [0.1, 0.12, 0.1]),
                       family("mlp", [-0.5, 0.5, 1.5]))  # fmt: skip
    found = evidence.exponent("step", "Ours", 0.5, 0.15)(made("step", {**near, **low, **wide}))
    assert [(one.problem, one.speaks) for one in found] == [("gpt", 1), ("cnn", -1), ("mlp", 0)]
    assert found[0].figure.startswith("0.50")


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((1, 1, 1), "holds"), ((1, 0), "holds"), ((1, 0, 0), "holds partly"),
        ((1, 1, -1), "holds partly"), ((0, 0), "is not shown"), ((0, -1), "does not hold"),
    ],
)  # fmt: skip
def test_a_verdict_is_counted(sides, expected):
    assert verdict([Evidence("", "", side, 5) for side in sides]) == expected
