"""The outcome in sentences: computed from the figures, whoever wins."""

from __future__ import annotations

import math
from statistics import fmean

from bench.ranks import reference, standings
from bench.results import Results, Row
from bench.tables import show_number
from bench.training import PLAIN_STEP


def demo_verdict(results: Results) -> list[str]:
    """One sentence per problem, and one about the cost of the searches."""
    ours, theirs = results.settings["optimizers"]
    losses = {"train_loss": "training loss", "validation_loss": "validation loss"}
    sentences = []
    for case, title in results.settings["cases"].items():
        parts = [
            compare(results.row(case, ours, metric), results.row(case, theirs, metric), name)
            for metric, name in losses.items()
        ]
        sentences.append(f"{title}: {'; '.join(parts)}.")
    return [*sentences, _step_sizes(results, ours, theirs), _cost(results, ours, theirs)]


def standing_verdict(results: Results) -> list[str]:
    """Where FusedSaLSa with its defaults stands over all problems, and beside the reference."""
    ours, base = next(iter(results.settings["optimizers"])), reference(results)
    if ours == base:
        return []
    found, titles = standings(results, "train_loss"), results.settings["cases"]
    own = found[ours]
    better = [titles[case] for case, ratio in own.ratios.items() if ratio < 1]
    place = sorted(one.mean_rank for one in found.values() if one.ranks).index(own.mean_rank) + 1
    return [
        f"By mean rank {ours} is {_nth(place)} of {len(found)}.",
        f"Its training loss is lower than that of {base} on {len(better)} of {len(own.ratios)} "
        f"problems{f': {_named(better)}' if better else ''}.",
    ]


def train_verdict(results: Results) -> list[str]:
    """Where FusedSaLSa with its defaults stands in every case, by training loss."""
    ours = next(iter(results.settings["optimizers"]))
    sentences = []
    for case, title in results.settings["cases"].items():
        found = [row for row in results.rows if (row.case, row.metric) == (case, "train_loss")]
        order = sorted(found, key=lambda row: row.mean if math.isfinite(row.mean) else math.inf)
        names = [row.optimizer for row in order]
        place = names.index(ours) if ours in names else len(names)
        best, rest = _named(names[:place]), _named(names[place + 1 :])
        sentence = f"{title}: {ours} is {_nth(place + 1)} of {len(names)} by training loss"
        sentence += f", behind {best}" if best else ""
        sentences.append(f"{sentence}{f', ahead of {rest}' if rest else ''}.")
    return sentences


def _named(names: list[str]) -> str:
    """Names have commas of their own."""
    return "; ".join(names)


def _nth(place: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(place, f"{place}th")


def compare(ours: Row, theirs: Row, name: str) -> str:
    """Whose loss is lower, by how much, and in how many of the seeds."""
    seeds = len(ours.values)
    winner, loser = (ours, theirs) if ours.mean <= theirs.mean else (theirs, ours)
    wins = sum(a < b for a, b in zip(winner.values, loser.values, strict=True))
    if 2 * wins <= seeds:
        return f"no clear winner in {name} ({winner.optimizer} is lower in {wins} of {seeds} seeds)"
    gap = _gap(winner.mean, loser.mean)
    return f"{winner.optimizer}'s {name} is {gap} lower (in {wins} of {seeds} seeds)"


def _gap(low: float, high: float) -> str:
    """As a factor where it is one, in per cent where losses are small, else in nats."""
    if low > 0 and high / low >= 1.5:
        return f"{high / low:.1f} times"
    return f"{(high - low) / high:.0%}" if high < 0.1 else f"{show_number(high - low)} nats"


def _step_sizes(results: Results, ours: str, theirs: str) -> str:
    found = " and ".join(
        f"{show_number(results.row(case, ours, 'final_step_size').median)} for the {title}"
        for case, title in results.settings["cases"].items()
    )
    given = results.settings["optimizers"][theirs]
    return f"{ours} found its step size itself: in the end {found} ({theirs} was given {given})."


def _cost(results: Results, ours: str, theirs: str) -> str:
    cases = list(results.settings["cases"])
    values = [v for case in cases for v in results.row(case, ours, "extra_forwards").values]
    mean, most = fmean(values), max(values)
    steps = " and ".join(
        f"{results.row(case, ours, 'steps').mean:.0f} steps where {theirs} took "
        f"{results.row(case, theirs, 'steps').mean:.0f}"
        for case in cases
    )
    return (
        f"The searches cost {ours} {mean:.3f} extra forwards per step ({mean / PLAIN_STEP:.1%} of "
        f"the work), {most:.3f} in the most expensive run. So it took {steps}."
    )
