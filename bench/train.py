"""What training reaches: FusedSaLSa beside tuned AdamW and beside learning-rate-free optimizers.

All do the same work: a forward counts 1, a backward 2, whoever asks for it.  Every run is kept
when it is through, so that a command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import time

import torch

from bench import console as c
from bench import results
from bench.hub import HUB
from bench.methods import ADAM
from bench.optimizers import FAMILY, FUSED_SALSA, METHODS
from bench.peers import versions
from bench.plots import draw_demo
from bench.problems import PROBLEMS
from bench.ranks import summary_table
from bench.results import REPOSITORY
from bench.runs import Done, Runner, collect
from bench.sets.fetch import DataError
from bench.tables import by_case, to_rich
from bench.training import Problem

KEPT = REPOSITORY / "bench" / ".runs"
DEMO = (FUSED_SALSA, ADAM)


def train(arguments: argparse.Namespace) -> int:
    console, device = c.CONSOLE, c.chosen_device(arguments.device)
    bench = "family" if arguments.family else "train"
    methods = {make().name: make for make in (FAMILY if arguments.family else METHODS)}
    c.check_amount(arguments)
    c.check_names("--optimizers", arguments.optimizers or (), methods)
    c.check_names("--data", [*(arguments.data or ()), *arguments.without], {**PROBLEMS, **HUB})
    makes = [methods[name] for name in methods if name in (arguments.optimizers or methods)]
    file = arguments.json or c.LOCAL / f"{bench}.json"
    c.check_writable(file)
    runner = Runner(device, console, KEPT, arguments.again)
    done: dict[str, list[Done]] = {}
    cases: list[Problem] = []
    for name in dict.fromkeys(arguments.data or PROBLEMS):
        if name in arguments.without:
            continue
        try:
            case = _problem(name, device, arguments.work)
        except DataError as error:  # the others still count
            runner.leave_out(name, str(error))
            continue
        console.print(f"{case.title}: {case.description}; {case.plain_steps} steps of work")
        start = time.perf_counter()
        if found := runner.run_all(case, makes, arguments.seeds):
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
    console.print(to_rich(summary_table(measured), console.width))
    return c.finish(measured, by_case(measured), file)


def _problem(name: str, device: torch.device, work: float) -> Problem:
    make = {**PROBLEMS, **HUB}[name]
    usual = make(device)
    return usual if work == 1.0 else make(device, max(1, round(work * usual.plain_steps)))


def demo(arguments: argparse.Namespace) -> int:
    """FusedSaLSa beside Adam on two small problems, in about two minutes."""
    console, device = c.CONSOLE, c.chosen_device(arguments.device)
    c.check_amount(arguments)
    cases = [PROBLEMS[name](device) for name in ("digits-cnn", "plays-gpt")]
    console.print(
        f"Training with {' and '.join(method.name for method in DEMO)}, {arguments.seeds} seeds "
        f"each, on {results.device_name(device)}:"
    )
    for case in cases:
        console.print(f"  {case.title}: {case.description}")
    runner, makes = Runner(device, console), [lambda one=one: one for one in DEMO]
    done = {case.case: runner.run_all(case, makes, arguments.seeds) for case in cases}
    measured = collect("demo", cases, done, device)
    picture = arguments.out / "demo.png"
    draw_demo(measured, picture)
    file = arguments.out / "demo.json"
    return c.finish(measured, by_case(measured), file, picture)
