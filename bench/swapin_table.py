"""The table of `swapin`: per script and optimizer, whether it trained, and how the steps began."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.results import Results, Row
from bench.tables import DASH, Cell, Section, Table, show_number

STEPS = ("1", "10", "30", "last")
COLUMNS = (
    "loss",
    "score",
    "died",
    "early\npeak",
    f"step size at\n{', '.join(STEPS)}",
    "s per\nrun",
)


def swapin_table(results: Results) -> Table:
    """Means over the seeds, with the lowest and the highest; step sizes are medians."""
    sections = []
    for case, title in results.settings["cases"].items():
        rows = {
            name: _cells(results, case, name, name == _best(results, case))
            for name in _names(results, case)
        }
        sections.append(Section(title, rows))
    return Table(COLUMNS, sections, _caption(results), ("script", "optimizer"))


def _cells(results: Results, case: str, name: str, best: bool) -> list[Cell]:
    by_loss = results.settings["judged_by"][case] == "final_loss"
    loss = results.row(case, name, "final_loss")
    scores = [results.row(case, name, metric) for metric in results.settings["shown"][case]]
    died = results.row(case, name, "died")
    sizes = [results.row(case, name, f"step_size_{step}").median for step in STEPS]
    return [
        Cell(_number(loss.mean), _spread(loss), best and by_loss),
        Cell(
            ", ".join(_number(score.mean) for score in scores) or DASH,
            _spreads(scores),
            best and not by_loss,
        ),
        Cell(f"{round(sum(died.values))} of {died.n}"),
        Cell(_peak(results, case, name)),
        Cell(" ".join(_short(size) for size in sizes)),
        Cell(f"{results.row(case, name, 'time').mean:.1f}"),
    ]


def _peak(results: Results, case: str, name: str) -> str:
    try:
        peak = results.row(case, name, "early_peak").high
    except KeyError:  # the loss may be negative
        return DASH
    return f"{peak:.1f}" if math.isfinite(peak) else "inf"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "diverged"
    return show_number(value) if abs(value) < 10 else f"{value:.3g}".replace("e+", "e")


def _short(value: float) -> str:
    """One digit: the order of magnitude is what counts."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if value == value else DASH


def _spread(row: Row) -> str:
    low, high = _number(row.low), _number(row.high)
    return f"{low}{DASH}{high}" if low != high else ""


def _spreads(rows: Sequence[Row]) -> str:
    return ", ".join(filter(None, map(_spread, rows)))


def _best(results: Results, case: str) -> str:
    """The optimizer with the best mean of what the script is judged by."""
    metric = results.settings["judged_by"][case]
    sign = -1 if case in results.settings["higher_is_better"] else 1
    means = {name: sign * results.row(case, name, metric).mean for name in _names(results, case)}
    return min(means, key=lambda name: means[name] if math.isfinite(means[name]) else math.inf)


def _names(results: Results, case: str) -> list[str]:
    return list(results.settings["ways"][case])


def _caption(results: Results) -> str:
    settings = results.settings
    scores = "; ".join(
        f"{settings['cases'][c]}: {what}" for c, what in settings["scores"].items() if what
    )
    own = {
        f"{settings['cases'][case]}: {name} ({what})"
        for case, ways in settings["ways"].items()
        for name, what in ways.items()
        if what and what != "its schedule as a factor"
    }
    text = (
        "The same work for all, where a forward counts 1 and a backward 2 (actor-critic: the same "
        f"episodes). Loss: of the batches, mean over the last {settings['final_share']:.0%} of the "
        f"work (of the GAN: the critic's, with the generator's step sizes). Score: "
        f"{scores or 'none'}. Bold: the best mean of what the script is judged by. "
        "Died: the last losses not finite or above the first one; for the GAN no spread, or no "
        "gradient; for the actor-critic last returns below 15. Early peak: the largest of the "
        f"first {settings['early']} losses, relative to the first one, in the worst run. Step "
        "sizes: medians, with the factor of a schedule. "
        f"The scripts' own: {'; '.join(sorted(own)) or 'left out'}."
    )
    if settings["options"]:
        text += f" Settings: {settings['options']}."
    if settings["missing"]:
        text += " Left out: " + "; ".join(f"{k} ({v})" for k, v in settings["missing"].items())
    return text
