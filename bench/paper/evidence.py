"""What seeds say about a claim on one problem: a figure with its 95 % interval."""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, median, stdev
from typing import NamedTuple

from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from bench.ranks import FLOOR, or_infinite, rank
from bench.results import Results

UPPER = 0.975  # the quantile of a two-sided 95 % interval
CLOSE = 1.05  # "no higher" allows this factor
FEWEST = 3  # values that can decide anything
LARGEST = 700.0  # that a float has the exponential of
FAR = 100.0  # times its seeds' median: a run that ends so has blown up


class Evidence(NamedTuple):
    """`speaks` is 1 for the claim, -1 against it, 0 where the interval says neither."""

    problem: str
    figure: str
    speaks: int
    n: int


Measure = Callable[[Results], list[Evidence]]


class Interval(NamedTuple):
    mean: float
    low: float
    high: float

    def shown(self, unit: str = "") -> str:
        ends = f" ({show(self.low)} to {show(self.high)})" if math.isfinite(self.high) else ""
        return f"{show(self.mean)}{unit}{ends}"

    def exponential(self) -> "Interval":
        """Of an interval of logarithms: what they are the logarithms of."""
        return Interval(*(math.exp(end) if end < LARGEST else math.inf for end in self))

    def inside(self, low: float, high: float) -> int:
        """1 where all of it is from `low` to `high`, -1 where all of it is outside, else 0."""
        return int(low <= self.low and self.high <= high) - int(self.high < low or self.low > high)

    def above(self, limit: float) -> int:
        """1 where all of it is above, -1 where all of it is below, else 0."""
        return int(self.low > limit) - int(self.high < limit)


def interval(values: Sequence[float]) -> Interval:
    """Of the mean, by Student's t; without ends where there are fewer than `FEWEST`."""
    mean = fmean(values)
    if len(values) < FEWEST:
        return Interval(mean, -math.inf, math.inf)
    error = stdev(values) / len(values) ** 0.5
    wide = float(t_distribution.ppf(UPPER, len(values) - 1)) * error
    return Interval(mean, mean - wide, mean + wide)


def show(value: float) -> str:
    """Two digits behind the point, three next to 1, or two that count."""
    if abs(value) >= 1e4:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 100 or value == 0:
        return f"{value:.0f}"
    if 0.9 < value < 1.1:
        return f"{value:.3f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}".replace("e-0", "e-")


def logarithm(value: float) -> float:
    """What is below rounding counts as the smallest loss that is not, and what diverged as 1e12."""
    return math.log(max(value, FLOOR) if math.isfinite(value) else 1 / FLOOR)


def log_ratios(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """Seed by seed."""
    return [logarithm(a) - logarithm(b) for a, b in zip(ours, others)]


def _points(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """How much higher a share is, seed by seed, in points of a hundred."""
    return [100 * (a - b) for a, b in zip(ours, others)]


def _pairs(
    results: Results, metric: str, ours: str, others: str
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Of every problem where both were run: its title, and their values by seed."""
    for case, title in results.settings["cases"].items():
        rows = results.rows_of(case, metric)
        if ours in rows and others in rows:
            yield title, rows[ours].values, rows[others].values


def ratio(metric: str, ours: str, others: str, *, no_higher: bool = False) -> Measure:
    """`ours` is below `others`, seed by seed; with `no_higher` it is at most 5 % above.

    More runs that blew up than `others` has speak against it, whatever the interval says.
    """

    def measure(results: Results) -> list[Evidence]:
        found = []
        for title, a, b in _pairs(results, metric, ours, others):
            logs = interval(log_ratios(a, b))
            speaks = -logs.above(math.log(CLOSE) if no_higher else 0.0)
            shown = logs.exponential().shown()
            if (count := blown_up(a, b)) > blown_up(b, a):
                speaks, shown = -1, f"{shown}, {count} of {len(a)} runs blew up"
            found.append(Evidence(title, shown, speaks, len(a)))
        return found

    return measure


def blown_up(values: Sequence[float], beside: Sequence[float]) -> int:
    """How many are not finite, or far above the median of them all and above the others' median."""
    own, other = (median(map(or_infinite, one)) for one in (values, beside))
    limit = max(FAR * own, other)
    return sum(not math.isfinite(value) or value > limit for value in values)


def overall(metric: str, ours: str, others: str) -> Measure:
    """`ours` is below `others` in the geometric mean over all problems, seed by seed."""

    def measure(results: Results) -> list[Evidence]:
        logs = _over_problems(results, metric, ours, others, log_ratios)
        if not logs:
            return []
        mean = interval(logs)
        shown = mean.exponential().shown()
        return [Evidence("geometric mean", shown, -mean.above(0), len(logs))]

    return measure


def overall_gain(metric: str, ours: str, others: str) -> Measure:
    """`ours` has the higher share in the mean over all problems, in points of a hundred."""

    def measure(results: Results) -> list[Evidence]:
        points = _over_problems(results, metric, ours, others, _points)
        if not points:
            return []
        mean = interval(points)
        return [Evidence("mean", mean.shown(" points"), mean.above(0), len(points))]

    return measure


def _over_problems(
    results: Results, metric: str, ours: str, others: str,
    compare: Callable[[Sequence[float], Sequence[float]], list[float]],
) -> list[float]:  # fmt: skip
    """By seed: the mean over the problems of what `compare` says of each."""
    by_problem = [compare(a, b) for _, a, b in _pairs(results, metric, ours, others)]
    return [fmean(of_seed) for of_seed in zip(*by_problem)]


def gain(metric: str, ours: str, others: str) -> Measure:
    """`ours` has the higher share, in points of a hundred."""

    def measure(results: Results) -> list[Evidence]:
        found = []
        for title, a, b in _pairs(results, metric, ours, others):
            points = interval(_points(a, b))
            found.append(Evidence(title, points.shown(" points"), points.above(0), len(a)))
        return found

    return measure


def steadier(metric: str, ours: str, others: str) -> Measure:
    """`ours` differs less between seeds: the ratio of standard deviations of logarithms.

    Its interval is that of the F distribution.
    """

    def measure(results: Results) -> list[Evidence]:
        found = []
        for title, a, b in _pairs(results, metric, ours, others):
            own, other = (stdev(map(logarithm, v)) if len(v) >= FEWEST else 0 for v in (a, b))
            if own and other:
                wide = float(f_distribution.ppf(UPPER, len(a) - 1, len(b) - 1)) ** 0.5
                spread = Interval(own / other, own / other / wide, own / other * wide)
                found.append(Evidence(title, spread.shown(), -spread.above(1), len(a)))
            else:
                found.append(Evidence(title, f"{show(own)} over {show(other)}", 0, len(a)))
        return found

    return measure


def within(metric: str, name: str, low: float, high: float, cases: Sequence[str] = ()) -> Measure:
    """The mean is from `low` to `high`, in percent; of some cases alone, or of all."""

    def measure(results: Results) -> list[Evidence]:
        found = []
        wanted = _only(results, cases) if cases else results
        for title, values, _ in _pairs(wanted, metric, name, name):
            percent = interval([100 * value for value in values])
            speaks = percent.inside(low, high)
            found.append(Evidence(title, percent.shown(" %"), speaks, len(values)))
        return found

    return measure


def _only(results: Results, cases: Sequence[str]) -> Results:
    known = results.settings["cases"]
    kept = {case: known[case] for case in cases if case in known}
    return Results(results.environment, results.rows, [], {**results.settings, "cases": kept})


def best_of(metric: str, good: Sequence[str], others: Sequence[str]) -> Measure:
    """One of `good` is the lowest of all: the best of them over the best of `others`."""

    def measure(results: Results) -> list[Evidence]:
        found = []
        for case in results.settings["cases"]:
            rows = results.rows_of(case, metric)
            if set(rows) >= {*good, *others}:
                logs = {name: fmean(map(logarithm, rows[name].values)) for name in rows}
                first, other = (min(names, key=logs.__getitem__) for names in (good, others))
                found += ratio(metric, first, other)(_only(results, [case]))
        return found

    return measure


def alike(metric: str, names: Sequence[str], factor: float) -> Measure:
    """The highest and the lowest mean of `names` differ by at most `factor`."""

    def measure(results: Results) -> list[Evidence]:
        found = []
        for case, title in results.settings["cases"].items():
            rows = results.rows_of(case, metric)
            if set(rows) >= {*names}:
                means = {name: fmean(map(logarithm, rows[name].values)) for name in names}
                lowest, highest = (end(names, key=means.__getitem__) for end in (min, max))
                apart = interval(log_ratios(rows[highest].values, rows[lowest].values))
                speaks = -apart.above(math.log(factor))
                shown = apart.exponential().shown()
                found.append(Evidence(title, shown, speaks, rows[highest].n))
        return found

    return measure


def mean_ranks(
    results: Results, metric: str, names: Sequence[str], sign: int
) -> dict[str, list[float]]:
    """Of every optimizer, by seed: its mean rank over the problems where all of them were run."""
    every = [results.rows_of(case, metric) for case in results.settings["cases"]]
    every = [rows for rows in every if set(rows) >= {*names}]
    seeds = range(min((row.n for rows in every for row in rows.values()), default=0))

    def of_seed(name: str, seed: int) -> float:
        places = []
        for rows in every:
            values = {one: sign * rows[one].values[seed] for one in names}
            places.append(rank(values[name], values.values()))
        return fmean(places)

    return {name: [of_seed(name, seed) for seed in seeds] for name in names}


def first_by_rank(metric: str, ours: str, names: Sequence[str], sign: int = 1) -> Measure:
    """`ours` has the lowest mean rank of `names`; beside it stands the best of the others."""

    def measure(results: Results) -> list[Evidence]:
        ranks = mean_ranks(results, metric, names, sign)
        if not ranks[ours]:
            return []
        other = min((name for name in names if name != ours), key=lambda name: fmean(ranks[name]))
        below = interval([a - b for a, b in zip(ranks[ours], ranks[other])])
        figure = f"{fmean(ranks[ours]):.2f}, {other} {fmean(ranks[other]):.2f}"
        return [Evidence("mean rank", figure, -below.above(0), len(ranks[ours]))]

    return measure


def exponent(metric: str, name: str, expected: float, tolerance: float) -> Measure:
    """Over batch sizes (cases NAME-bSIZE) the metric grows as a power: the exponent that fits."""

    def measure(results: Results) -> list[Evidence]:
        families: dict[str, list[tuple[float, list[float]]]] = {}
        for case in results.settings["cases"]:
            family, _, size = case.rpartition("-b")
            if name in (rows := results.rows_of(case, metric)):
                logs = [math.log(value) for value in rows[name].values]
                families.setdefault(family, []).append((math.log(int(size)), logs))
        found = []
        for family, points in families.items():
            if len(points) > 1:
                sizes = [size for size, _ in points]
                fits = interval([_slope(sizes, one) for one in zip(*(logs for _, logs in points))])
                speaks = fits.inside(expected - tolerance, expected + tolerance)
                found.append(Evidence(family, fits.shown(), speaks, len(points[0][1])))
        return found

    return measure


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    middle, height = fmean(x), fmean(y)
    above = sum((a - middle) * (b - height) for a, b in zip(x, y))
    return above / sum((a - middle) ** 2 for a in x)
