"""All problems of `train` in one table, and each optimizer's ratio on every problem."""

from __future__ import annotations

import math

from bench.ranks import CAP, FLOOR, REFERENCE, Standing, reference, standings
from bench.results import Results
from bench.tables import DASH, Cell, Section, Table, show_number
from bench.train_table import how_each_is_set

HEADS = ("", "optimizer")
COLUMNS = (
    "training\nmean rank", "training\nratio", "training\nworst",
    "validation\nmean rank", "validation\nratio", "runs to\ntune",
)  # fmt: skip
LOSSES = {"train_loss": "training loss", "validation_loss": "validation loss"}


def summary_table(results: Results) -> Table:
    """A line per optimizer: mean ranks, geometric means of the ratios, and the worst of them."""
    training, validation = (standings(results, metric) for metric in LOSSES)
    rows = {}
    for name in results.settings["optimizers"]:
        case, worst = training[name].worst
        runs = [r.mean for r in results.rows if (r.optimizer, r.metric) == (name, "tuning_runs")]
        rows[name] = [
            *_rank_and_ratio(results, name, training),
            Cell(show_ratio(worst), case if name != reference(results) else ""),
            *_rank_and_ratio(results, name, validation),
            Cell(f"{max(runs, default=0):.0f}"),
        ]
    return Table(COLUMNS, [Section("", rows)], _caption(results), HEADS)


def _rank_and_ratio(results: Results, name: str, found: dict[str, Standing]) -> list[Cell]:
    own, cases = found[name], len(results.settings["cases"])
    first = min(one.mean_rank for one in found.values() if one.ranks)
    lowest = min(one.ratio for one in found.values() if one.ratios)
    low, high = (show_ratio(end(own.by_seed, default=math.nan)) for end in (min, max))
    ran = f"{len(own.ranks)} of {cases} problems" if len(own.ranks) < cases else ""
    rank = f"{own.mean_rank:.1f}" if own.ranks else DASH
    spread = f"{low}{DASH}{high}" if low != high else ""
    return [
        Cell(rank, ran, own.mean_rank == first),
        Cell(show_ratio(own.ratio), spread, own.ratio == lowest),
    ]


def ratio_table(results: Results, metric: str = "train_loss") -> Table:
    """Every optimizer's ratio to the reference on every problem."""
    cases = list(results.settings["cases"])
    found = standings(results, metric)
    best = {
        case: min(one.ratios[case] for one in found.values() if case in one.ratios)
        for case in cases
        if any(case in one.ratios for one in found.values())
    }
    rows = {
        name: [_ratio_cell(one.ratios.get(case), best.get(case)) for case in cases]
        for name, one in found.items()
    }
    caption = (
        f"Of every problem: the mean {LOSSES[metric]} over {_reference(results)}'s; below 1 is "
        "better than it, bold is the best."
    )
    return Table(tuple(cases), [Section("", rows)], caption, HEADS)


def validation_ratio_table(results: Results) -> Table:
    return ratio_table(results, "validation_loss")


def _ratio_cell(ratio: float | None, best: float | None) -> Cell:
    if ratio is None:
        return Cell(DASH)
    return Cell(show_ratio(ratio), best=ratio == best and math.isfinite(ratio))


def show_ratio(value: float) -> str:
    """Two decimals, fewer where it is large; two significant digits where it is small."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "diverged"
    if value < 0.1:
        return show_number(value)
    if value < 100:
        return f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return f"{value:.0f}" if value < 1e5 else f"{value:.0e}".replace("e+0", "e")


def _reference(results: Results) -> str:
    """For a sentence."""
    name = reference(results)
    return "tuned AdamW" if name == REFERENCE else name


def _caption(results: Results) -> str:
    settings, base = results.settings, _reference(results)
    return (
        f"{len(settings['cases'])} problems, for the same work, where a forward counts 1 and a "
        f"backward 2; losses are those of fixed samples, in evaluation mode, mean over the last "
        f"{settings['final_share']:.0%} of the work. Mean rank: among {len(settings['optimizers'])}"
        f", by the mean loss of {settings['seeds']} seeds. Ratio: that loss over {base}'s, the "
        "geometric mean over the problems; in brackets the lowest and the highest that single "
        f"seeds give, over {base}'s mean. Worst: the largest ratio, and its problem. A loss below "
        f"{FLOOR:g} counts as {FLOOR:g}; in a geometric mean a ratio above {CAP:g}, or of a loss "
        f"that is not finite, counts as {CAP:g}. Bold: the best. {how_each_is_set(results)}"
    )
