"""What training reaches: FusedSaLSa beside tuned AdamW and beside learning-rate-free optimizers.

All do the same work: a forward counts 1, a backward 2, whoever asks for it.  Every run is kept
when it is through, so that a command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from bench.amount import add_amount, check_amount
from bench.collect import collect
from bench.devices import add_device, check_writable, chosen_device
from bench.hub import HUB
from bench.method import Method
from bench.optimizers import FAMILY, METHODS
from bench.peers import versions
from bench.problems import PROBLEMS
from bench.runs import KEPT, Done, Runner, Store
from bench.sets.fetch import DataError
from bench.tables import finish, to_rich, without_spread
from bench.train_summary import summary_table
from bench.train_table import train_table
from bench.training import Problem

WIDE = 100  # columns of a terminal with room for spreads
OUT = Path("bench/results/local/train.json")
OUT_FAMILY = Path("bench/results/local/family.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument(
        "--data",
        nargs="+",
        default=list(PROBLEMS),
        choices=[*PROBLEMS, *HUB],
        metavar="CASE",
        help=f"of {', '.join(PROBLEMS)}, and from a hub {', '.join(HUB)} (default: all but these)",
    )
    parser.add_argument(
        "--without", nargs="+", default=[], choices=list(PROBLEMS), metavar="CASE", help="not these"
    )
    parser.add_argument("--optimizers", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument(
        "--family", action="store_true", help="the papers' other systems, beside FusedSaLSa"
    )
    add_amount(parser, seeds=3)
    parser.add_argument(
        "--again", action="store_true", help="measure anew what was measured before"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help=f"default: {OUT}, or {OUT_FAMILY.name} there"
    )


def main(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False)
    device = chosen_device(arguments.device)
    make_methods = _chosen(FAMILY if arguments.family else METHODS, arguments.optimizers)
    check_amount(arguments)
    file = arguments.json or (OUT_FAMILY if arguments.family else OUT)
    bench = "family" if arguments.family else "train"
    runner = Runner(device, console, Store(KEPT, device, again=arguments.again))
    cases: list[Problem] = []
    done: dict[str, list[Done]] = {}
    check_writable(file)
    for name in dict.fromkeys(arguments.data):
        if name in arguments.without:
            continue
        try:
            case = _problem({**PROBLEMS, **HUB}[name], device, arguments.work)
        except DataError as error:  # the others still count
            runner.missing[name] = str(error)
            console.print(f"{name}: left out: {error}", style="yellow")
            continue
        console.print(f"{case.title}: {case.description}; {case.plain_steps} steps of work")
        start = time.perf_counter()
        found = runner.run_all(case, make_methods, arguments.seeds)
        if not found:
            continue
        cases.append(case)
        done[case.case] = found
        console.print(f"{case.title}: {time.perf_counter() - start:.0f} s", style="dim")
        measured = collect(bench, cases, done, device)
        measured.settings.update(missing=runner.missing, peers=versions())
        measured.environment["commit"] = ", ".join(sorted(runner.commits))
        measured.write(file)  # after every case: nothing is lost
    if not cases:
        raise SystemExit("nothing could be run")
    if runner.reused:
        console.print(f"{runner.reused} runs were there already (--again measures them anew).")
    overview = summary_table(measured)
    console.print(to_rich(overview if console.width >= WIDE else without_spread(overview)))
    return finish(measured, without_spread(train_table(measured)), file, console)


def _problem(make: Callable[..., Problem], device: torch.device, work: float) -> Problem:
    if work == 1.0:
        return make(device)
    return make(device, max(1, round(work * make(device).plain_steps)))


def _chosen(
    methods: Sequence[Callable[[], Method]], names: Sequence[str] | None
) -> list[Callable[[], Method]]:
    known = {make().name: make for make in methods}
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise SystemExit(f"--optimizers: {unknown[0]!r} is none of {', '.join(map(repr, known))}")
    return [make for name, make in known.items() if not names or name in names]
