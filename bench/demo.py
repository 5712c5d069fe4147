"""FusedSaLSa beside Adam on two small problems, for the same work, in about two minutes."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from bench import problems, results, summary
from bench.optimizers import ADAM, FUSED_SALSA
from bench.plots import draw_demo
from bench.results import Curve, Results, Row
from bench.tables import demo_table, to_rich
from bench.training import Problem, Run, train
from bench.verdict import demo_verdict

METHODS = (FUSED_SALSA, ADAM)
QUICK = 5  # --quick divides the work by this
OUT = Path("bench/results/demo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        choices=range(1, 101),
        metavar="N",
        help="runs of each optimizer on each problem (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"1/{QUICK} of the work: to see that all is in place"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=OUT,
        metavar="DIR",
        help="what to write into (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the data goes (default: DIR/demo.json)"
    )


def main(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    console = Console(highlight=False)
    device = _device(arguments.device)
    share = 1 / QUICK if arguments.quick else 1.0
    cases = [
        problems.digits_cnn(device, round(share * problems.DIGITS_STEPS)),
        problems.plays_gpt(device, round(share * problems.GPT_STEPS)),
    ]
    console.print(
        f"Training with {' and '.join(method.name for method in METHODS)}, {arguments.seeds} seeds "
        f"each, on {results.device_name(device)}:"
    )
    for case in cases:
        console.print(f"  {case.title}: {case.description}")
    measured = collect(cases, run_all(cases, arguments.seeds, device, console), device)

    data = arguments.json or arguments.out / "demo.json"
    measured.write(data)
    pictures = draw_demo(measured, arguments.out)

    table = demo_table(measured)
    console.print(to_rich(table))
    console.print(table.caption, style="dim")
    console.print()
    if arguments.quick:
        console.print("(--quick: too short a run to tell the optimizers apart.)")
    for sentence in demo_verdict(measured):
        console.print(sentence)
    console.print(f"\nWrote {', '.join(str(path) for path in [data, *pictures])}.")
    console.print(f"{time.perf_counter() - start:.0f} seconds in all.")
    return 0


def _device(name: str | None) -> torch.device:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and found == "cpu":
        raise SystemExit("--device cuda: this torch finds no GPU; leave the option out")
    return torch.device(name or found)


def run_all(cases: list[Problem], seeds: int, device: torch.device, console: Console) -> list[Run]:
    """Every problem, seed and optimizer; the optimizers take turns, also in going first.

    So a machine that is busy for a while slows both down.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    runs: list[Run] = []
    with Progress(*columns, console=console) as progress:
        for case in cases:
            bar = progress.add_task(case.title, total=seeds * len(METHODS) * case.budget)
            for seed in range(seeds):
                for method in METHODS if seed % 2 == 0 else reversed(METHODS):
                    title = f"{case.title}: {method.name:10} seed {seed + 1} of {seeds}"
                    progress.update(bar, description=title)
                    done = progress.tasks[bar].completed
                    advance = partial(_advance, progress, bar, done)
                    runs.append(train(case, method, seed, device, on_work=advance))
            progress.update(bar, description=case.title)
    return runs


def _advance(progress: Progress, bar: TaskID, done: float, units: int) -> None:
    progress.update(bar, completed=done + units)


def collect(cases: list[Problem], runs: list[Run], device: torch.device) -> Results:
    """The runs as rows and curves, with what captions have to say about them."""
    rows: list[Row] = []
    curves: list[Curve] = []
    for case in cases:
        for method in METHODS:
            own = [run for run in runs if (run.case, run.method) == (case.case, method.name)]
            rows += summary.rows_of("demo", case, own)
            curves += summary.curves_of("demo", case, own)
    settings = {
        "cases": {case.case: case.title for case in cases},
        "descriptions": {case.case: case.description for case in cases},
        "log_loss": [case.case for case in cases if case.log_loss],
        "plain_steps": {case.case: case.plain_steps for case in cases},
        "samples": "; ".join(f"{case.title}: {case.evaluated_on}" for case in cases),
        "optimizers": {method.name: method.settings for method in METHODS},
        "seeds": len({run.seed for run in runs}),
        "final_share": summary.FINAL_SHARE,
        "warm_up": summary.WARM_UP,
    }
    return Results(results.environment(device), rows, curves, settings)
