"""FusedSaLSa in the place of the optimizer of training loops as people write them.

Each loop runs with its own optimizer and with FusedSaLSa, swapped in as the README says, for the
same work. What a reader looks for first: whether training died.
"""

from __future__ import annotations

import argparse
import importlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from bench import console as c
from bench import results
from bench.ranks import or_infinite
from bench.results import Results, Row
from bench.runs import Done, Runner
from bench.scripts import SCRIPTS
from bench.scripts.script import Make, Script, Way
from bench.sets.fetch import DataError
from bench.tables import DASH, Cell, Rows, Table, caption, show_number, spread_of
from bench.training import CPU, EARLY, FINAL_SHARE, Run

FACTOR = "its schedule as a factor"
STEPS = {"1": 1, "10": 10, "30": 30, "last": -1}  # whose step sizes are shown


def swapin(arguments: argparse.Namespace) -> int:
    console = c.CONSOLE
    c.check_amount(arguments)
    c.check_names("--only", arguments.only or (), SCRIPTS)
    c.check_writable(arguments.json)
    name, make = swapped_optimizer(arguments.optimizer, arguments.settings)
    runner = ScriptRunner(CPU, console)
    done: dict[Script, list[Done]] = {}
    for case in arguments.only or SCRIPTS:
        try:
            script = SCRIPTS[case]().shortened(arguments.work)
        except DataError as error:  # the others still count
            runner.leave_out(case, str(error))
            continue
        console.print(f"{script.title}: {script.description}")
        start = time.perf_counter()
        own = () if arguments.without_own else script.own
        ways = (*own, *swapped_ways(script, name, make))
        if found := runner.run_ways(script, ways, arguments.seeds):
            done[script] = found
            console.print(f"{script.title}: {time.perf_counter() - start:.0f} s", style="dim")
            measured = collect(done, arguments.seeds, arguments.settings, runner.missing)
            measured.write(arguments.json)  # after every script: nothing is lost
    if not done:
        raise SystemExit("nothing could be run")
    for name, texts in measured.settings["warnings"].items():
        for text, runs in texts.items():
            console.print(f"{name}: warned in {runs} runs: {text[:120]} ...", style="dim")
    return c.finish(measured, swapin_table(measured), arguments.json)


def swapped_optimizer(what: str, settings: dict[str, Any]) -> tuple[str, Make]:
    """The optimizer's name, and what builds it as a user would."""
    module_name, _, name = what.partition(":")
    try:
        optimizer = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SystemExit(f"--optimizer {what}: {error}") from None

    def make(params: Any, module: nn.Module, *, max_grad_norm: float | None = None) -> Any:
        return optimizer(params, module=module, **{"max_grad_norm": max_grad_norm, **settings})

    return name, make


def swapped_ways(script: Script, name: str, make: Make) -> tuple[Way, ...]:
    """One for each schedule that the script is swapped with."""
    return tuple(
        Way(f"{name}{suffix}", FACTOR if factor else "", make, factor, True)
        for suffix, factor in script.schedules.items()
    )


class ScriptRunner(Runner):
    """Runs the ways of scripts in turn; nothing is kept."""

    def run_ways(self, script: Script, ways: Sequence[Way], seeds: int) -> list[Done]:
        return self.run_all(script, [lambda way=way: way for way in ways], seeds * script.repeats)

    def train(self, case: Any, method: Any, seed: int, on_work: Callable[[int], None]) -> Run:
        return case.run(method, seed)


def collect(
    done: dict[Script, list[Done]], seeds: int, options: dict[str, Any], missing: dict[str, str]
) -> Results:
    """One file of results of what ran so far."""
    every = [(script, one) for script, found in done.items() for one in found]
    warned = {
        f"{script.title}: {one.method.name}": dict(Counter(t for r in one.runs for t in r.warnings))
        for script, one in every
    }
    names = {"cases": "title", "descriptions": "description", "scores": "score", "shown": "shown",
             "judged_by": "judged_by"}  # fmt: skip
    settings = {
        **{to: {one.case: getattr(one, name) for one in done} for to, name in names.items()},
        "higher_is_better": [script.case for script in done if script.higher_is_better],
        "ways": {
            script.case: {one.method.name: one.method.settings for one in found}
            for script, found in done.items()
        },
        "options": options,
        "seeds": seeds,
        "final_share": FINAL_SHARE,
        "early": EARLY,
        "warnings": {name: texts for name, texts in warned.items() if texts},
        "missing": missing,
    }
    rows = [row for script, one in every for row in rows_of(script, one.runs)]
    return Results(results.environment(CPU), rows, settings=settings)


def rows_of(script: Script, runs: Sequence[Run]) -> list[Row]:
    """The figures of one way on one script; `runs` are its seeds."""
    metrics = {
        ("final_loss", "nats"): [run.final_loss for run in runs],
        ("died", "share"): [float(run.died) for run in runs],
        ("time", "s"): [run.seconds for run in runs],
        **{(f"step_size_{name}", "1"): [run.step_size_at(step) for run in runs]
           for name, step in STEPS.items()},
        **{(score, "1"): [run.scores[score] for run in runs] for score in runs[0].scores},
    }  # fmt: skip
    if script.loss_is_positive:
        metrics["early_peak", "of the first loss"] = [run.early_peak for run in runs]
    return [
        results.row("swapin", script.case, runs[0].method, metric, unit, values)
        for (metric, unit), values in metrics.items()
    ]


def swapin_table(results: Results) -> Table:
    """Means over the seeds, with the lowest and the highest; step sizes are medians."""
    settings = results.settings
    rows: Rows = {}
    for case, title in settings["cases"].items():
        judged_by, shown = settings["judged_by"][case], settings["shown"][case]
        sign = -1 if case in settings["higher_is_better"] else 1
        figures: dict[str, dict[str, Row]] = {name: {} for name in settings["ways"][case]}
        for row in results.rows:
            if row.case == case:
                figures[row.optimizer][row.metric] = row
        best = min(figures, key=lambda name: or_infinite(sign * figures[name][judged_by].mean))
        rows |= {
            (title, name): [
                _means(found, ["final_loss"], name == best and judged_by == "final_loss"),
                _means(found, shown, name == best and judged_by in shown),
                *map(Cell, _others(found)),
            ]
            for name, found in figures.items()
        }
    columns = (
        "loss", "score", "died", "early\npeak", f"step size at\n{', '.join(STEPS)}", "s per\nrun",
    )  # fmt: skip
    return Table(columns, rows, _caption(results), ("script", "optimizer"))


def _means(found: dict[str, Row], metrics: Sequence[str], best: bool) -> Cell:
    rows = [found[metric] for metric in metrics]
    spreads = filter(None, (spread_of(row, _number) for row in rows))
    return Cell(", ".join(_number(row.mean) for row in rows) or DASH, ", ".join(spreads), best)


def _others(found: dict[str, Row]) -> Iterator[str]:
    died, peak = found["died"], found.get("early_peak")
    yield f"{round(sum(died.values))} of {died.n}"
    yield f"{peak.high:.1f}".replace("nan", "inf") if peak else DASH  # the loss may be negative
    yield " ".join(_one_digit(found[f"step_size_{step}"].median) for step in STEPS)
    yield f"{found['time'].mean:.1f}"


def _number(value: float) -> str:
    small = not math.isfinite(value) or abs(value) < 10
    return show_number(value) if small else f"{value:.3g}".replace("e+", "e")


def _one_digit(value: float) -> str:
    """The order of magnitude is what counts."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if value == value else DASH


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
