"""What seeds say about a claim on one problem: a figure with its 95 % interval (Student's t)."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from bench.ranks import FLOOR, or_infinite, rank
from bench.results import Results

LEVEL = 0.95
CLOSE = 1.05  # "no worse" allows this factor


class Evidence(NamedTuple):
    """`speaks` is 1 for the claim, -1 against it, 0 where the interval says neither."""

    problem: str
    figure: str
    speaks: int
    n: int


Measure = Callable[[Results], list[Evidence]]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its interval."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    error = stdev(values) / len(values) ** 0.5
    wide = float(t_distribution.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return mean, mean - wide, mean + wide


def ratio(metric: str, ours: str, others: str, *, no_worse: bool = False) -> Measure:
    """`ours` is lower than `others` in `metric`, seed by seed; with `no_worse` it is not higher."""

    def measure(results: Results) -> list[Evidence]:
        return [
            _below_one(title, logs, no_worse)
            for case, title in results.settings["cases"].items()
            if (logs := _logs(results, case, metric, ours, others))
        ]

    return measure


def _logs(results: Results, case: str, metric: str, ours: str, others: str) -> list[float]:
    rows = results.rows_of(case, metric)
    if ours not in rows or others not in rows:
        return []
    pairs = zip(rows[ours].values, rows[others].values)
    return [_log(a) - _log(b) for a, b in pairs]


def _log(value: float) -> float:
    """What is not finite, or below rounding, counts as the largest or smallest that does."""
    return math.log(min(max(or_infinite(value), FLOOR), 1 / FLOOR))


def _below_one(title: str, logs: Sequence[float], no_worse: bool) -> Evidence:
    mean, low, high = interval(logs)
    limit = math.log(CLOSE) if no_worse else 0.0
    speaks = -1 if low > limit else int(mean <= limit if no_worse else high < 0)
    return Evidence(title, _spread(math.exp(mean), low, high, math.exp), speaks, len(logs))


def _spread(
    mean: float, low: float, high: float, of: Callable[[float], float] = float, unit: str = ""
) -> str:
    ends = f" ({show(of(low))} to {show(of(high))})" if math.isfinite(high) else ""
    return f"{show(mean)}{unit}{ends}"


def show(value: float) -> str:
    """Two digits behind the point, or two that count."""
    if abs(value) >= 1e4:
        return f"{value:.0e}".replace("e+0", "e")
    if abs(value) >= 100 or value == 0:
        return f"{value:.0f}"
    if abs(value) >= 0.1:
        return f"{value:.2f}"
    return f"{value:.2g}".replace("e-0", "e-")


def gain(metric: str, ours: str, others: str) -> Measure:
    """`ours` has the higher share in `metric`, in points of a hundred."""

    def measure(results: Results) -> list[Evidence]:
        found = []
        for case, title in results.settings["cases"].items():
            rows = results.rows_of(case, metric)
            if ours in rows and others in rows:
                pairs = zip(rows[ours].values, rows[others].values)
                mean, low, high = interval([100 * (a - b) for a, b in pairs])
                speaks = int(low > 0) - int(high < 0)
                figure = _spread(mean, low, high, unit=" points")
                found.append(Evidence(title, figure, speaks, rows[ours].n))
        return found

    return measure


def steadier(metric: str, ours: str, others: str, *, logs: bool = False) -> Measure:
    """`ours` differs less between seeds: the ratio of standard deviations (F distribution)."""

    def measure(results: Results) -> list[Evidence]:
        found = []
        for case, title in results.settings["cases"].items():
            rows = results.rows_of(case, metric)
            if ours not in rows or others not in rows or rows[ours].n < 2:
                continue
            of = _log if logs else float
            own, other = (stdev(map(of, rows[name].values)) for name in (ours, others))
            if not own or not other:
                continue
            freedom = rows[ours].n - 1
            wide = float(f_distribution.ppf((1 + LEVEL) / 2, freedom, freedom)) ** 0.5
            mean, low, high = own / other, own / other / wide, own / other * wide
            speaks = int(high < 1) - int(low > 1)
            found.append(Evidence(title, _spread(mean, low, high), speaks, rows[ours].n))
        return found

    return measure


def within(metric: str, name: str, low: float, high: float) -> Measure:
    """The mean is from `low` to `high`, in percent."""

    def measure(results: Results) -> list[Evidence]:
        found = []
        for case, title in results.settings["cases"].items():
            if name in (rows := results.rows_of(case, metric)):
                mean, least, most = interval([100 * value for value in rows[name].values])
                speaks = 1 if low <= mean <= high else -1
                figure = _spread(mean, least, most, unit=" %")
                found.append(Evidence(title, figure, speaks, rows[name].n))
        return found

    return measure


def best_of(metric: str, good: Sequence[str], others: Sequence[str]) -> Measure:
    """The lowest mean is that of one of `good`: its ratio to the best of the others."""

    def measure(results: Results) -> list[Evidence]:
        found = []
        for case in results.settings["cases"]:
            rows = results.rows_of(case, metric)
            means = {
                name: or_infinite(rows[name].mean) for name in (*good, *others) if name in rows
            }
            if len(means) == len(good) + len(others):
                ours, other = (min(names, key=means.__getitem__) for names in (good, others))
                found += ratio(metric, ours, other, no_worse=True)(_only(results, case))
        return found

    return measure


def _only(results: Results, case: str) -> Results:
    cases = {case: results.settings["cases"][case]}
    return Results(results.environment, results.rows, [], {**results.settings, "cases": cases})


def mean_ranks(
    results: Results, metric: str, names: Sequence[str], sign: int
) -> dict[str, list[float]]:
    """Of every optimizer, by seed: its mean rank over the problems, 1 is the best."""
    by_case = [results.rows_of(case, metric) for case in results.settings["cases"]]
    whole = [rows for rows in by_case if all(name in rows for name in names)]
    seeds = range(min((rows[name].n for rows in whole for name in names), default=0))

    def place(rows: Mapping[str, object], name: str, seed: int) -> float:
        losses = {one: sign * rows[one].values[seed] for one in names}  # type: ignore[attr-defined]
        return rank(losses[name], losses.values())

    return {name: [fmean(place(rows, name, seed) for rows in whole) for seed in seeds]
            for name in names}  # fmt: skip


def first_by_rank(metric: str, ours: str, names: Sequence[str], sign: int = 1) -> Measure:
    """`ours` has the lowest mean rank of `names`: how far below the best of the others it is."""

    def measure(results: Results) -> list[Evidence]:
        ranks = mean_ranks(results, metric, names, sign)
        if not ranks[ours]:
            return []
        other = min((name for name in names if name != ours), key=lambda name: fmean(ranks[name]))
        _, low, high = interval([a - b for a, b in zip(ranks[ours], ranks[other])])
        figure = f"{fmean(ranks[ours]):.2f}, {other} {fmean(ranks[other]):.2f}"
        return [Evidence("mean rank", figure, int(high < 0) - int(low > 0), len(ranks[ours]))]

    return measure


def exponent(metric: str, name: str, expected: float, tolerance: float) -> Measure:
    """Over batch sizes (cases NAME-bSIZE) `metric` grows as a power: the fitted exponent."""

    def measure(results: Results) -> list[Evidence]:
        families: dict[str, list[tuple[float, list[float]]]] = {}
        for case in results.settings["cases"]:
            family, _, size = case.rpartition("-b")
            if name in (rows := results.rows_of(case, metric)):
                logs = [math.log(value) for value in rows[name].values]
                families.setdefault(family, []).append((math.log(int(size)), logs))
        found = []
        for family, points in families.items():
            sizes = [size for size, _ in points]
            if len(sizes) > 1:
                fits = [_slope(sizes, values) for values in zip(*(logs for _, logs in points))]
                mean, low, high = interval(fits)
                close = abs(mean - expected) <= tolerance
                figure = _spread(mean, low, high)
                found.append(Evidence(family, figure, 1 if close else -1, len(fits)))
        return found

    return measure


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    middle, height = fmean(x), fmean(y)
    above = sum((a - middle) * (b - height) for a, b in zip(x, y))
    return above / sum((a - middle) ** 2 for a in x)
