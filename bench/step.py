"""What a whole training step costs: forward, backward and optimizer, on real architectures.

On a CPU all optimizers take turns, round after round, so that a machine that is busy for a while
slows all of them down; on a GPU, where they would not fit side by side, one comes after the other.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from bench import results
from bench.devices import add_device, check_writable, chosen_device
from bench.method import Method
from bench.optimizers import fused_salsa
from bench.others import adamw, authors_salsa, prodigy, schedule_free
from bench.peak import peak_memory
from bench.peers import versions
from bench.progress import progress_bars
from bench.results import Results, Row
from bench.step_table import step_table
from bench.steps import KINDS, Stepper, report_left_out, settled
from bench.tables import finish, without_spread
from bench.workloads import ON_CPU, ON_GPU, Workload

OUT = Path("bench/results/local/step.json")
FUSED = "AdamW, fused"  # what the ratios are taken to
OURS = "FusedSaLSa"
WARM_UP = 20  # steps of an optimizer that searches: it looks for the order of magnitude first
BLOCK = 10  # steps in a round of an optimizer that searches: its longest period
FEW = 3  # of the others


def compiled_adamw() -> Method:
    """AdamW whose step torch.compile has made one graph of."""
    method = adamw("AdamW, compiled", "torch.compile")

    def build(model: torch.nn.Module) -> torch.optim.Optimizer:
        torch._dynamo.reset()  # it keeps the tensors of what it compiled before
        # it warns of profilers that it leaves out
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        optimizer = method.build(model)
        optimizer.step = torch.compile(optimizer.step)  # type: ignore[assignment]
        return optimizer

    return replace(method, build=build)


METHODS: tuple[Callable[[], Method], ...] = (
    partial(adamw, FUSED, fused=True),
    partial(adamw, "AdamW, foreach", foreach=True),
    compiled_adamw,
    partial(fused_salsa, OURS),
    authors_salsa,
    prodigy,
    schedule_free,
)


@dataclass
class Measured:
    """Of one optimizer: mean seconds of a step in every round, and what else there is to say."""

    name: str
    rounds: list[float] = field(default_factory=list)
    kinds: dict[str, list[float]] = field(default_factory=dict)
    in_step: list[float] = field(default_factory=list)
    extra_forwards: float = 0.0
    peak: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--json", type=Path, default=OUT, metavar="FILE", help="default: %(default)s"
    )


def main(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False)
    device = chosen_device(arguments.device)
    check_writable(arguments.json)
    makes = ON_GPU if device.type == "cuda" else ON_CPU
    rows: list[Row] = []
    cases: dict[str, str] = {}
    missing: dict[str, str] = {}
    for make in makes:
        workload = make()
        cases[workload.case] = workload.describe()
        found = measure(workload, device, arguments.rounds, console, missing)
        rows += rows_of(workload.case, found)
    settings = {
        "cases": cases,
        "rounds": arguments.rounds,
        "missing": missing,
        "peers": versions(),
        "autocast": "bf16" if device.type == "cuda" else None,
        "in_turn": device.type != "cuda",
    }
    measured = Results(results.environment(device), rows, settings=settings)
    return finish(measured, without_spread(step_table(measured)), arguments.json, console)


def measure(
    workload: Workload,
    device: torch.device,
    rounds: int,
    console: Console,
    missing: dict[str, str],
    methods: Sequence[Callable[[], Method]] = METHODS,
) -> list[Measured]:
    """Every optimizer on this model; what is not there, or has no room, is reported."""
    found: list[Measured] = []
    ready: list[tuple[Measured, Stepper]] = []
    with progress_bars(console) as progress:
        bar = progress.add_task(workload.title, total=len(methods) * (1 + rounds))
        for make in methods:
            method = make()
            title = f"{workload.title}: {method.name}"
            progress.update(bar, description=title)
            measured = Measured(method.name)
            try:
                measured.peak = peak_memory(partial(settled, workload, method, device), device)
                stepper = Stepper.build(workload, method, device)
                for _ in range(WARM_UP if stepper.searches else FEW):
                    stepper.step()
                stepper.work.forwards = stepper.work.backwards = 0
                if device.type == "cuda":
                    for _ in range(rounds):
                        _round(measured, stepper)
                        progress.advance(bar)
                    _finish(measured, stepper)
                else:
                    ready.append((measured, stepper))
                found.append(measured)
                del stepper
            except Exception as error:
                report_left_out(title, error, missing, console)
            gc.collect()
            progress.advance(bar)
        progress.update(bar, description=workload.title)
        for index in range(rounds):
            for measured, stepper in ready if index % 2 == 0 else reversed(ready):
                _round(measured, stepper)
                progress.advance(bar)
        for measured, stepper in ready:
            _finish(measured, stepper)
    return found


def _round(measured: Measured, stepper: Stepper) -> None:
    count = BLOCK if stepper.searches else FEW
    steps = [stepper.step_and_kind() for _ in range(count)]
    measured.rounds.append(statistics.fmean(seconds for seconds, _ in steps))
    for seconds, kind in steps:
        measured.kinds.setdefault(kind, []).append(seconds)


def _finish(measured: Measured, stepper: Stepper) -> None:
    work = stepper.work
    measured.extra_forwards = work.forwards / max(1, work.backwards) - 1
    for _ in range(BLOCK if stepper.searches else FEW):
        seconds = stepper.seconds_in_step()
        if seconds is not None:
            measured.in_step.append(seconds)


def rows_of(case: str, found: Sequence[Measured]) -> list[Row]:
    """Times, and what they are of fused AdamW's in the same round."""
    fused = next((one.rounds for one in found if one.name == FUSED), None)
    rows: list[Row] = []

    def add(name: str, metric: str, unit: str, values: Sequence[float]) -> None:
        if values:
            rows.append(results.timed_row("step", case, name, metric, unit, values))

    for one in found:
        add(one.name, "time", "ms", [1e3 * t for t in one.rounds])
        if fused is not None:
            add(one.name, "to_fused", "1", [a / b for a, b in zip(one.rounds, fused)])
        add(one.name, "extra_forwards", "per step", [one.extra_forwards])
        add(one.name, "in_step", "ms", [1e3 * t for t in one.in_step])
        add(one.name, "peak_memory", "MB", [one.peak / 1e6])
        for kind in KINDS if len(one.kinds) > 1 else ():
            seconds = one.kinds.get(kind, [])
            name = f"{one.name}: {kind}"
            add(name, "time", "ms", [1e3 * t for t in seconds])
            if fused is not None:
                middle = statistics.median(fused)
                add(name, "to_fused", "1", [t / middle for t in seconds])
    return rows
