"""Peak memory of a training step beside AdamW's, on models of real size."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from bench import results
from bench.devices import add_device, check_writable, chosen_device
from bench.method import Method
from bench.models import parameter_count
from bench.others import d_adaptation
from bench.peak import peak_memory
from bench.peers import versions
from bench.progress import progress_bars
from bench.results import Results, Row
from bench.step import FUSED
from bench.step import METHODS as STEP_METHODS
from bench.step_table import memory_table
from bench.steps import report_left_out, settled
from bench.tables import finish
from bench.workloads import ON_GPU, REAL_SIZES, Workload

OUT = Path("bench/results/local/memory.json")
METHODS: tuple[Callable[[], Method], ...] = (*STEP_METHODS, d_adaptation)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument(
        "--json", type=Path, default=OUT, metavar="FILE", help="default: %(default)s"
    )


def main(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False)
    device = chosen_device(arguments.device)
    check_writable(arguments.json)
    makes = ON_GPU if device.type == "cuda" else REAL_SIZES
    rows: list[Row] = []
    cases: dict[str, str] = {}
    missing: dict[str, str] = {}
    for make in makes:
        workload = make()
        cases[workload.case] = workload.describe()
        rows += measure(workload, device, console, missing)
    settings = {"cases": cases, "missing": missing, "peers": versions()}
    measured = Results(results.environment(device), rows, settings=settings)
    return finish(measured, memory_table(measured), arguments.json, console)


def measure(
    workload: Workload, device: torch.device, console: Console, missing: dict[str, str]
) -> list[Row]:
    """Rows of every optimizer; one that is not there, or has no room, is reported."""
    rows: list[Row] = []
    fused: float | None = None
    with progress_bars(console) as progress:
        for make in progress.track(METHODS, description=workload.title):
            method = make()
            name = f"{workload.title}: {method.name}"
            kept: list[float] = []
            try:
                peak = peak_memory(partial(_settle, workload, method, device, kept), device)
            except Exception as error:
                report_left_out(name, error, missing, console)
                continue
            finally:
                gc.collect()
            if method.name == FUSED:
                fused = peak
            metrics = [("peak_memory", "MB", peak / 1e6), ("state", "bytes a parameter", kept[0])]
            if fused is not None:
                metrics.append(("to_fused", "1", peak / fused))
            for metric, unit, value in metrics:
                rows.append(
                    results.row("memory", workload.case, method.name, metric, unit, [value])
                )
    return rows


def _settle(workload: Workload, method: Method, device: torch.device, kept: list[float]) -> None:
    stepper = settled(workload, method, device)
    kept.append(_state_bytes(stepper.optimizer) / parameter_count(stepper.model))


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of all tensors in the optimizer's state, lists of tensors included."""
    total, waiting = 0, list(optimizer.state.values())
    while waiting:
        one = waiting.pop()
        if isinstance(one, torch.Tensor):
            total += one.numel() * one.element_size()
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            waiting += one
    return total
