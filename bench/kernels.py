"""What the kernels cost: GB/s, beside a copy and beside torch's Adam, in one process.

Everything is timed in turn, round after round, so that a machine that is busy for a while slows
all of it down; the ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from bench import gpu_kernels, results
from bench.kernel_table import gpu_kernels_table, kernels_table
from bench.results import Results, Row
from bench.tables import finish
from salsa_fused import FusedSaLSa

OUT = Path("bench/results/local/kernels.json")
TENSORS = 150
FLUSH_BYTES = 128 << 20  # more than the caches of one socket hold
FUSED = "torch Adam, fused"  # what the ratios are taken to
FOREACH = "torch Adam, foreach"
COPY = "copy"


@dataclass(frozen=True)
class Model:
    """How much is stepped, and whether something else fills the caches before every call."""

    title: str
    size: int
    cold: bool


MODELS = (
    Model("25 M parameters", 25_000_000, cold=True),
    Model("0.5 M parameters, cold caches", 500_000, cold=True),
    Model("0.5 M parameters, warm caches", 500_000, cold=False),
)


@dataclass(frozen=True)
class Timed:
    """Something to time; `bytes_each` is what it has to move per parameter in fp32."""

    name: str
    bytes_each: int
    call: Callable[[], object]
    every: int = 1  # slow ones are left out of most rounds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--backends",
        nargs="+",
        default=["triton", "native"],
        choices=("triton", "native", "reference"),
        help="on a GPU (default: triton native)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, torch.get_num_threads()}),
        metavar="N",
        help="numbers of threads, on a CPU (default: one, and all)",
    )
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--json", type=Path, default=OUT, metavar="FILE", help="default: %(default)s"
    )


def main(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False)
    device = torch.device(arguments.device)
    if device.type == "cuda":
        measured = gpu_kernels.run(
            gpu_kernels.MODELS, device, arguments.rounds, arguments.backends, console
        )
        return finish(measured, gpu_kernels_table(measured), arguments.json, console)
    before = torch.get_num_threads()
    rows: list[Row] = []
    cases: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        total = len(arguments.threads) * len(MODELS) * arguments.rounds
        bar = progress.add_task("", total=total)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for model in MODELS:
                case = f"{model.title}, {threads} {'thread' if threads == 1 else 'threads'}"
                progress.update(bar, description=case)
                cases.append(case)
                timed = everything(model.size)
                advance = partial(progress.advance, bar)
                seconds = measure(timed, arguments.rounds, model.cold, advance)
                rows += rows_of(case, model.size, timed, seconds)
    torch.set_num_threads(before)
    settings = {"cases": cases, "tensors": TENSORS, "rounds": arguments.rounds}
    measured = Results(results.environment(device), rows, settings=settings)
    return finish(measured, kernels_table(measured), arguments.json, console)


def everything(size: int) -> list[Timed]:
    """All that is timed on one model of `size` fp32 parameters in equal tensors."""
    weights = [torch.randn(size // TENSORS) for _ in range(TENSORS)]
    for weight in weights:
        weight.grad = 1e-2 * torch.randn_like(weight)
    adam = {
        name: torch.optim.Adam(weights, lr=1e-6, **{name: True})  # type: ignore[arg-type]
        for name in ("fused", "foreach")
    }
    plain = FusedSaLSa(weights, lr=1.0, init_step_size=1e-6, search_period=None)
    for optimizer in (plain, *adam.values()):
        optimizer.step()  # the moments
    allocating, first_trial, next_trial, final, alignment = _search_kernels(weights)
    source, target = torch.randn(size), torch.empty(size)
    return [
        Timed(COPY, 8, lambda: target.copy_(source)),
        Timed(FUSED, 28, adam["fused"].step),
        Timed(FOREACH, 28, adam["foreach"].step, every=5),
        Timed("a plain step", 28, plain.step),
        Timed("first_trial, allocating", 20, allocating),
        Timed("first_trial", 20, first_trial),
        Timed("next_trial", 16, next_trial),
        Timed("adam_step after a search", 28, final),
        Timed("alignment", 12, alignment),
    ]


def _search_kernels(weights: list[Tensor]) -> tuple[Callable[[], object], ...]:
    """The kernels of a search by themselves: without closure and bookkeeping.

    The first with the memory for the saved weights, too, which every search takes and gives back.
    """
    optimizer = FusedSaLSa(weights, init_step_size=1e-6, search_period=None)
    optimizer.step()
    for weight in weights:
        optimizer.state[weight]["window_start"] = weight.clone()
    groups, table = optimizer.param_groups, optimizer._table
    table.refresh(groups, optimizer.state)
    table.alignment()
    table.first_trial(groups, 1e-6)
    (launch,) = table.launches
    backend = launch.backend

    def allocating() -> None:
        launch.saved = None
        launch.make_room()
        backend.first_trial(launch)

    return (
        allocating,
        lambda: backend.first_trial(launch),
        lambda: backend.next_trial(launch),
        lambda: backend.adam_step(launch)(),
        lambda: backend.alignment(launch),
    )


def measure(
    timed: Sequence[Timed],
    rounds: int,
    cold: bool,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, list[float | None]]:
    """Seconds of each, by round (None where it was left out); the order rotates.

    With `cold` something else fills the caches before every call; without, it has just run.
    """
    flush = torch.zeros(FLUSH_BYTES // 4)
    seconds: dict[str, list[float | None]] = {one.name: [] for one in timed}
    for one in timed:
        one.call()  # a warm-up
    for index in range(rounds):
        turn = index % len(timed)
        for one in [*timed[turn:], *timed[:turn]]:
            if index % one.every:
                seconds[one.name].append(None)
                continue
            flush.add_(1.0) if cold else one.call()
            start = time.perf_counter()
            one.call()
            seconds[one.name].append(time.perf_counter() - start)
        after_round()
    return seconds


def rows_of(
    case: str, size: int, timed: Sequence[Timed], seconds: dict[str, list[float | None]]
) -> list[Row]:
    """Time, bandwidth, and what they are of a copy's and of fused Adam's in the same round."""
    rows = []

    def bandwidth(name: str, each: int) -> list[float | None]:
        return [t and 1e-9 * each * size / t for t in seconds[name]]

    copy = bandwidth(COPY, 8)
    for one in timed:
        own = bandwidth(one.name, one.bytes_each)
        metrics: dict[tuple[str, str], list[float | None]] = {
            ("time", "ms"): [t and 1e3 * t for t in seconds[one.name]],
            ("bandwidth", "GB/s"): own,
            ("of_copy", "1"): _ratios(own, copy),
            ("to_fused", "1"): _ratios(seconds[one.name], seconds[FUSED]),
            ("to_foreach", "1"): _ratios(seconds[one.name], seconds[FOREACH]),
        }
        for (metric, unit), values in metrics.items():
            kept = [value for value in values if value is not None]
            rows.append(results.timed_row("kernels", case, one.name, metric, unit, kept))
    return rows


def _ratios(own: list[float | None], other: list[float | None]) -> list[float | None]:
    return [a / b if a is not None and b is not None else None for a, b in zip(own, other)]
