"""Where each optimizer stands over all problems: ranks, and its losses over a reference's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from bench.results import Results, Row

REFERENCE = "AdamW, tuned"
FLOOR = 1e-12  # smaller losses count as this one: below it they are rounding
CAP = 1e3  # larger ratios, and losses that are not finite, count as this one in a geometric mean


@dataclass(frozen=True)
class Standing:
    """Of one optimizer, by one loss; problems that it was left out of are in none of it."""

    ranks: dict[str, float]  # of every case, 1 is the best
    ratios: dict[str, float]  # of every case: its mean over the seeds to the reference's mean
    by_seed: tuple[float, ...]  # for every seed, the geometric mean over the cases

    @property
    def mean_rank(self) -> float:
        return fmean(self.ranks.values()) if self.ranks else math.nan

    @property
    def ratio(self) -> float:
        return geometric_mean(self.ratios.values())

    @property
    def worst(self) -> tuple[str, float]:
        """The case and the ratio."""
        return max(self.ratios.items(), key=lambda item: item[1], default=("", math.nan))


def reference(results: Results) -> str:
    """Tuned AdamW; where it was not run, the first optimizer."""
    names = list(results.settings["optimizers"])
    return REFERENCE if REFERENCE in names else names[0]


def standings(results: Results, metric: str) -> dict[str, Standing]:
    """Of all optimizers, by "train_loss" or "validation_loss"."""
    rows = {(row.case, row.optimizer): row for row in results.rows if row.metric == metric}
    return {name: _standing(results, rows, name) for name in results.settings["optimizers"]}


def _standing(results: Results, rows: dict[tuple[str, str], Row], name: str) -> Standing:
    ranks, ratios, by_seed = {}, {}, []
    for case in results.settings["cases"]:
        own, base = rows.get((case, name)), rows.get((case, reference(results)))
        if own is None:
            continue
        ranks[case] = rank(own.mean, [row.mean for (of, _), row in rows.items() if of == case])
        if base is not None and math.isfinite(base.mean):
            ratios[case] = ratio(own.mean, base.mean)
            by_seed.append([ratio(value, base.mean) for value in own.values])
    return Standing(ranks, ratios, tuple(geometric_mean(seed) for seed in zip(*by_seed)))


def rank(loss: float, losses: Iterable[float]) -> float:
    """Its place among `losses`, of which it is one; equal ones share the mean of their places."""
    order = sorted(map(_or_infinite, losses))
    first, equal = order.index(_or_infinite(loss)), order.count(_or_infinite(loss))
    return first + (equal + 1) / 2


def ratio(loss: float, base: float) -> float:
    """Infinite where the loss is not finite."""
    return max(_or_infinite(loss), FLOOR) / max(base, FLOOR)


def geometric_mean(ratios: Iterable[float]) -> float:
    logs = [math.log(min(one, CAP)) for one in ratios]
    return math.exp(fmean(logs)) if logs else math.nan


def _or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
