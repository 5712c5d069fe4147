"""All problems in one table: ranks, and each optimizer's losses relative to a reference's."""

import math
from collections.abc import Iterable
from functools import partial
from statistics import fmean
from typing import NamedTuple

from bench.results import Results
from bench.tables import DASH, Cell, Rows, Table, caption, show_number

REFERENCE = "AdamW, tuned"
FLOOR = 1e-12  # smaller losses count as this one: below it they are rounding
CAP = 1e3  # larger ratios, and losses that are not finite, count as this one in a geometric mean
COLUMNS = (
    "training\nmean rank", "training\nratio", "training\nworst",
    "validation\nmean rank", "validation\nratio", "runs to\ntune",
)  # fmt: skip
LOSSES = {"train_loss": "training loss", "validation_loss": "validation loss"}


class Standing(NamedTuple):
    """One optimizer by one loss; problems that it was left out of are in none of the fields."""

    ranks: dict[str, float]  # of every case, 1 is the best
    mean_rank: float
    ratios: dict[str, float]  # of every case: its mean over the seeds to the reference's mean
    ratio: float  # their geometric mean
    by_seed: list[float]  # the same for every seed
    worst: tuple[str, float]  # the case and the ratio


def reference(results: Results) -> str:
    """Tuned AdamW; where it was not run, the first optimizer."""
    names = list(results.settings["optimizers"])
    return REFERENCE if REFERENCE in names else names[0]


def standings(results: Results, metric: str) -> dict[str, Standing]:
    """Compare all optimizers by "train_loss" or "validation_loss"."""
    found: dict[str, Standing] = {}
    for name in results.settings["optimizers"]:
        ranks, ratios, by_seed = {}, {}, []
        for case in results.settings["cases"]:
            rows = results.rows_of(case, metric)
            if name in rows:
                own, base = rows[name], rows.get(reference(results))
                ranks[case] = rank(own.mean, [row.mean for row in rows.values()])
                if base is not None and math.isfinite(base.mean):
                    ratios[case] = ratio(own.mean, base.mean)
                    by_seed.append([ratio(value, base.mean) for value in own.values])
        mean_rank = fmean(ranks.values()) if ranks else math.nan
        seeds = [geometric_mean(seed) for seed in zip(*by_seed)]
        worst = max(ratios.items(), key=lambda item: item[1], default=("", math.nan))
        mean = geometric_mean(ratios.values())
        found[name] = Standing(ranks, mean_rank, ratios, mean, seeds, worst)
    return found


def or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def rank(loss: float, losses: Iterable[float]) -> float:
    """Its place among `losses`, of which it is one; equal ones share the mean of their places."""
    own, others = or_infinite(loss), [or_infinite(other) for other in losses]
    return sum(other < own for other in others) + (others.count(own) + 1) / 2


def ratio(loss: float, base: float) -> float:
    """Infinite where the loss is not finite."""
    return max(or_infinite(loss), FLOOR) / max(base, FLOOR)


def geometric_mean(ratios: Iterable[float]) -> float:
    logs = [math.log(min(one, CAP)) for one in ratios]
    return math.exp(fmean(logs)) if logs else math.nan


# --- tables ---------------------------------------------------------------------------------------


def summary_table(results: Results, said: str = "summary") -> Table:
    """A line per optimizer: mean ranks, geometric means of the ratios, and the worst of them."""
    training, validation = (standings(results, metric) for metric in LOSSES)
    rows: Rows = {}
    cases = len(results.settings["cases"])
    for name in results.settings["optimizers"]:
        case, worst = training[name].worst
        runs = [r.mean for r in results.rows if (r.optimizer, r.metric) == (name, "tuning_runs")]
        rows[name,] = [
            *_rank_and_ratio(name, training, cases),
            Cell(show_ratio(worst), case if name != reference(results) else ""),
            *_rank_and_ratio(name, validation, cases),
            Cell(f"{max(runs, default=0):.0f}"),
        ]
    counts = {"n_cases": cases, "n_optimizers": len(rows)}
    text = caption(said, results, **counts, base=_said(results), floor=FLOOR, cap=CAP)
    return Table(COLUMNS, rows, text, ("optimizer",))


def _rank_and_ratio(name: str, found: dict[str, Standing], cases: int) -> list[Cell]:
    own = found[name]
    first = min(one.mean_rank for one in found.values() if one.ranks)
    lowest = min(one.ratio for one in found.values() if one.ratios)
    low, high = (show_ratio(end(own.by_seed, default=math.nan)) for end in (min, max))
    ran = f"{len(own.ranks)} of {cases} problems" if len(own.ranks) < cases else ""
    return [
        Cell(f"{own.mean_rank:.1f}".replace("nan", DASH), ran, own.mean_rank == first),
        Cell(show_ratio(own.ratio), f"{low}{DASH}{high}" * (low != high), own.ratio == lowest),
    ]


def ratio_table(results: Results, metric: str = "train_loss") -> Table:
    """Every optimizer's ratio to the reference on every problem."""
    found = standings(results, metric)
    rows: Rows = {(name,): [] for name in found}
    for case in results.settings["cases"]:
        ratios = {name: one.ratios.get(case, math.nan) for name, one in found.items()}
        best = min(filter(math.isfinite, ratios.values()), default=math.nan)
        for name, own in ratios.items():
            rows[name,].append(Cell(show_ratio(own), best=own == best))
    said = caption("ratios", results, loss=LOSSES[metric], base=_said(results))
    return Table([*results.settings["cases"]], rows, said, ("optimizer",))


validation_ratio_table = partial(ratio_table, metric="validation_loss")


def show_ratio(value: float) -> str:
    """Two decimals, fewer where it is large; two significant digits where it is small."""
    if not math.isfinite(value):
        return DASH if math.isnan(value) else "diverged"
    if value < 0.1:
        return show_number(value)
    if value < 100:
        return f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return f"{value:.0f}" if value < 1e5 else f"{value:.0e}".replace("e+0", "e")


def _said(results: Results) -> str:
    """The reference in a sentence."""
    return reference(results).replace(REFERENCE, "tuned AdamW")
