"""FusedSaLSa in the place of the optimizer of training loops as people write them.

Each loop runs with its own optimizer and with FusedSaLSa, swapped in as the README says, for the
same work. What a reader looks for first: whether training died.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bench import results
from bench.amount import add_amount, check_amount
from bench.devices import check_writable
from bench.progress import progress_bars
from bench.results import Curve, Results, Row
from bench.scripts import SCRIPTS
from bench.scripts.script import EARLY, FINAL_SHARE, SHOWN_STEPS, Make, Run, Script, Way
from bench.sets.fetch import DataError
from bench.swapin_table import swapin_table
from bench.tables import finish, without_spread

OUT = Path("bench/results/local/swapin.json")
OPTIMIZER = "salsa_fused:FusedSaLSa"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_amount(parser, seeds=2)
    parser.add_argument(
        "--only", nargs="+", choices=list(SCRIPTS), metavar="NAME", help=f"of {', '.join(SCRIPTS)}"
    )
    parser.add_argument(
        "--settings",
        type=json.loads,
        default={},
        metavar="JSON",
        help="""keyword arguments for the swapped optimizer: '{"lr": 0.5}' (default: none)""",
    )
    parser.add_argument(
        "--optimizer",
        default=OPTIMIZER,
        metavar="MODULE:NAME",
        help="what to swap in: built with (params, module=..., max_grad_norm=...), and only "
        "step(closure) is called (default: %(default)s)",
    )
    parser.add_argument(
        "--without-own", action="store_true", help="leave out the scripts' own optimizers"
    )
    parser.add_argument(
        "--json", type=Path, default=OUT, metavar="FILE", help="default: %(default)s"
    )


def main(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False)
    check_amount(arguments)
    check_writable(arguments.json)
    name, make = swapped_optimizer(arguments.optimizer, arguments.settings)
    measured = Measured(arguments.seeds)
    for case in arguments.only or SCRIPTS:
        try:
            script = SCRIPTS[case](arguments.work)
        except DataError as error:  # the others still count
            measured.missing[case] = str(error)
            console.print(f"{case}: left out: {error}", style="yellow")
            continue
        console.print(f"{script.title}: {script.description}")
        start = time.perf_counter()
        own = () if arguments.without_own else script.own
        measured.run(script, (*own, *swapped_ways(script, name, make)), console)
        console.print(f"{script.title}: {time.perf_counter() - start:.0f} s", style="dim")
        found = measured.results(arguments.settings)
        found.write(arguments.json)  # after every script: nothing is lost
    if not measured.rows:
        raise SystemExit("nothing could be run")
    for name, texts in measured.warnings.items():
        for text, runs in texts.items():
            console.print(f"{name}: warned in {runs} runs: {text[:120]} ...", style="dim")
    return finish(found, without_spread(swapin_table(found)), arguments.json, console)


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
        Way(f"{name}{suffix}", "its schedule as a factor" if factor else "", make, factor, True)
        for suffix, factor in script.schedules.items()
    )


@dataclass
class Measured:
    """What ran so far, as rows and curves."""

    seeds: int
    scripts: list[Script] = field(default_factory=list)
    ways: dict[str, dict[str, str]] = field(default_factory=dict)  # of a case: settings in words
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    warnings: dict[str, dict[str, int]] = field(default_factory=dict)  # and in how many runs
    missing: dict[str, str] = field(default_factory=dict)

    def run(self, script: Script, ways: Sequence[Way], console: Console) -> None:
        """All ways with all seeds, in turn: a busy machine slows all of them down."""
        seeds = self.seeds * script.repeats
        runs: dict[str, list[Run]] = {way.name: [] for way in ways}
        said: dict[str, Counter[str]] = {way.name: Counter() for way in ways}
        with progress_bars(console) as progress:
            bar = progress.add_task(script.title, total=seeds * len(ways))
            for seed in range(seeds):
                for way in ways if seed % 2 == 0 else reversed(ways):
                    name = f"{script.title}: {way.name}"
                    if name not in self.missing:
                        progress.update(bar, description=f"{name}, seed {seed + 1} of {seeds}")
                        try:
                            run, texts = one_run(script, way, seed)
                        except Exception as error:  # of this optimizer: the others still count
                            self.missing[name] = f"{type(error).__name__}: {error}"
                            console.print(f"{name}: left out: {self.missing[name]}", style="yellow")
                        else:
                            runs[way.name].append(run)
                            said[way.name].update(texts)
                    progress.advance(bar)
        whole = [way for way in ways if len(runs[way.name]) == seeds]
        if whole:
            self.scripts.append(script)
            self.ways[script.case] = {way.name: way.settings for way in whole}
        for way in whole:
            self.rows += rows_of(script, runs[way.name])
            self.curves += curves_of(script, runs[way.name])
            if said[way.name]:
                self.warnings[f"{script.title}: {way.name}"] = dict(said[way.name])

    def results(self, options: dict[str, Any]) -> Results:
        settings = {
            "cases": {script.case: script.title for script in self.scripts},
            "descriptions": {script.case: script.description for script in self.scripts},
            "scores": {script.case: script.score for script in self.scripts},
            "shown": {script.case: script.shown for script in self.scripts},
            "judged_by": {script.case: script.judged_by for script in self.scripts},
            "higher_is_better": [s.case for s in self.scripts if s.higher_is_better],
            "ways": self.ways,
            "options": options,
            "seeds": self.seeds,
            "final_share": FINAL_SHARE,
            "early": EARLY,
            "warnings": self.warnings,
            "missing": self.missing,
        }
        where = results.environment(torch.device("cpu"))
        return Results(where, self.rows, self.curves, settings)


def one_run(script: Script, way: Way, seed: int) -> tuple[Run, set[str]]:
    """The run, and what a user would have been warned of."""
    with warnings.catch_warnings(record=True) as caught, without_denormals():
        warnings.simplefilter("always")
        run = script.train(way, seed)
    return run, {str(warning.message) for warning in caught}


@contextmanager
def without_denormals() -> Iterator[None]:
    """A softmax that is saturated is full of them, and a step then takes five times as long."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def rows_of(script: Script, runs: Sequence[Run]) -> list[Row]:
    """The figures of one way on one script; `runs` are its seeds."""
    metrics = {
        ("final_loss", "nats"): [run.final_loss for run in runs],
        ("died", "share"): [float(run.died) for run in runs],
        ("steps", "1"): [float(len(run.losses)) for run in runs],
        ("skipped_steps", "1"): [float(run.skipped_steps) for run in runs],
        ("time", "s"): [run.seconds for run in runs],
    }
    if script.loss_is_positive:
        metrics["early_peak", "of the first loss"] = [run.early_peak for run in runs]
    for step in (*SHOWN_STEPS, -1):
        metrics[step_size_metric(step), "1"] = [run.step_size_at(step) for run in runs]
    for score in runs[0].scores:
        metrics[score, "1"] = [run.scores[score] for run in runs]
    return [
        results.row("swapin", script.case, runs[0].way, metric, unit, values)
        for (metric, unit), values in metrics.items()
    ]


def step_size_metric(step: int) -> str:
    return f"step_size_{step}" if step > 0 else "step_size_last"


def curves_of(script: Script, runs: Sequence[Run]) -> list[Curve]:
    steps = range(1, 1 + max(len(run.losses) for run in runs))
    series = {
        "loss": [run.losses for run in runs],
        "step_size": [run.step_sizes for run in runs],
    }
    return [
        results.curve("swapin", script.case, runs[0].way, quantity, "steps", steps, values)
        for quantity, values in series.items()
    ]
