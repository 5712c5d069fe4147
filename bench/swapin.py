"""FusedSaLSa in the place of the optimizer of training loops as people write them.

Each loop runs with its own optimizer and with FusedSaLSa, swapped in as docs/ says, for the same
work. What a reader looks for first: whether training died.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from bench import console as c
from bench import results
from bench.methods import Method
from bench.optimizers import fused_salsa
from bench.results import Results, Row
from bench.runs import Done, Runner, said_of
from bench.scripts import SCRIPTS, Script
from bench.tables import DASH, Cell, Column, Rows, Table, caption, show_number
from bench.training import CPU, EARLY

FACTOR = "its schedule as a factor"
STEPS = {"1": 1, "10": 10, "30": 30, "last": -1}  # whose step sizes are shown


def swapin(arguments: argparse.Namespace) -> int:
    file = arguments.json
    c.check_amount(arguments)
    c.check_names("--only", arguments.only or (), SCRIPTS)
    c.check_writable(file)
    measured = Runner(CPU).run_all(
        arguments.only or SCRIPTS, lambda name: SCRIPTS[name]().scaled(arguments.work),
        lambda script: [*script.own, *swapped(script, arguments.settings)],
        arguments.seeds, file, partial(collect, arguments.settings),
    )  # fmt: skip
    return c.finish(measured, swapin_table(measured), file)


def swapped(script: Script, options: dict[str, Any]) -> list[Method]:
    """FusedSaLSa, once for each schedule that the script is swapped with."""
    return [
        fused_salsa("FusedSaLSa, scheduled", FACTOR, factor, **options) if factor
        else fused_salsa("FusedSaLSa", "", **options)
        for factor in script.schedules
    ]  # fmt: skip


def collect(options: dict[str, Any], done: dict[Script, list[Done]], runner: Runner) -> Results:
    """One file of results of what ran so far."""
    settings = {
        **said_of(done, runner),
        "scores": {script.case: script.score for script in done},
        "shown": {script.case: list(found[0].runs[0].scores) for script, found in done.items()},
        "ways": {
            script.case: {one.method.name: one.method.settings for one in found}
            for script, found in done.items()
        },
        "options": options,
        "early": EARLY,
    }
    rows = [row for script, found in done.items() for one in found for row in rows_of(script, one)]
    return Results(results.environment(CPU), rows, settings=settings)


def rows_of(script: Script, done: Done) -> list[Row]:
    """The figures of one optimizer on one script, one value for every seed."""
    runs = done.runs
    metrics = {
        ("final_loss", "nats"): [run.final_loss for run in runs],
        ("died", "share"): [float(run.died) for run in runs],
        ("early_peak", "of the first loss"): [run.early_peak for run in runs],
        ("time", "s"): [run.seconds for run in runs],
        **{(f"step_size_{name}", "1"): [run.step_size_at(step) for run in runs]
           for name, step in STEPS.items()},
        **{(score, "1"): [run.scores[score] for run in runs] for score in runs[0].scores},
    }  # fmt: skip
    row = partial(results.row, "swapin", script.case, done.method.name)
    return [row(metric, unit, values) for (metric, unit), values in metrics.items()]


def _number(value: float) -> str:
    small = not math.isfinite(value) or abs(value) < 10
    return show_number(value) if small else f"{value:.3g}".replace("e+", "e")


def _one_digit(value: float) -> str:
    """The order of magnitude is what counts."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if value == value else DASH


LOSS = Column("", "final_loss", _number, spread=True, best=1)
EARLY_PEAK = Column("", "early_peak", lambda x: f"{x:.1f}".replace("nan", "inf"), "high")
STEP_SIZES = [Column("", f"step_size_{step}", _one_digit, "median") for step in STEPS]
SECONDS = Column("", "time", "{:.1f}".format)


def _cell(
    results: Results, case: str, name: str, columns: Sequence[Column], between: str = ", "
) -> Cell:
    """All figures in one cell."""
    cells = [column.cell(results, case, name) for column in columns]
    spread = ", ".join(cell.spread for cell in cells if cell.spread)
    text = between.join(cell.text for cell in cells)
    return Cell(text or DASH, spread, any(cell.best for cell in cells))


def swapin_table(results: Results) -> Table:
    """Means over the seeds, with the lowest and the highest; step sizes are medians."""
    settings = results.settings
    rows: Rows = {}
    for case, title in settings["cases"].items():
        scores = [LOSS._replace(metric=name, best=0) for name in settings["shown"][case]]
        for name in settings["ways"][case]:
            of = partial(_cell, results, case, name)
            died = results.rows_of(case, "died")[name]
            rows[title, name] = [
                of([LOSS]), of(scores), Cell(f"{round(sum(died.values))} of {died.n}"),
                of([EARLY_PEAK]), of(STEP_SIZES, " "), of([SECONDS]),
            ]  # fmt: skip
    columns = (
        "loss", "score", "died", "early\npeak", f"step size at\n{', '.join(STEPS)}", "s per\nrun",
    )  # fmt: skip
    return Table(columns, rows, _caption(results), ("script", "optimizer"))


def _caption(results: Results) -> str:
    settings, titles = results.settings, results.settings["cases"]
    scores = "; ".join(f"{titles[c]}: {what}" for c, what in settings["scores"].items() if what)
    own = {
        f"{titles[case]}: {name} ({what})"
        for case, ways in settings["ways"].items()
        for name, what in ways.items()
        if what and what != FACTOR
    }
    options = f" Settings: {settings['options']}." if settings["options"] else ""
    own_ones = "; ".join(sorted(own)) or "left out"
    return caption("swapin", results, score=scores or "none", own=own_ones, with_options=options)
