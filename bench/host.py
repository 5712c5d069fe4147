"""What a plain step costs the host: the Python between one launch and the next.

On a GPU that is what limits small models.  With `--device cpu` the launches themselves are left
out, of both optimizers: what remains is Python's time, all checks of tensors included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from torch import Tensor

from bench import results
from bench.results import Results, Row
from bench.tables import Cell, Section, Table, finish
from salsa_fused import FusedSaLSa
from salsa_fused.kernels import BACKENDS, triton_backend
from salsa_fused.kernels.triton_backend import TritonBackend

OUT = Path("bench/results/local/host.json")
TENSORS = 200
ELEMENTS = 16  # of a tensor: too few to cost anything but the host
ADAM = "torch Adam, fused"
OURS = "FusedSaLSa, triton"
CASES = {
    "stay": "gradients where they were",
    "move": "gradients elsewhere in every step",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=400, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--json", type=Path, default=OUT, metavar="FILE", help="default: %(default)s"
    )


def main(arguments: argparse.Namespace) -> int:
    device = torch.device(arguments.device)
    rows: list[Row] = []
    with nullcontext() if device.type == "cuda" else without_launches():
        for case in CASES:
            seconds = measure(device, arguments.rounds, moving=case == "move")
            rows += rows_of(case, seconds)
    settings = {"tensors": TENSORS, "rounds": arguments.rounds, "launches": device.type == "cuda"}
    measured = Results(results.environment(device), rows, settings=settings)
    return finish(measured, host_table(measured), arguments.json, Console(highlight=False))


class OnTheHost(TritonBackend):
    """Serves CPU tensors, whose launches are left out."""

    def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
        return None


@contextmanager
def without_launches() -> Iterator[None]:
    """Neither our kernels nor those that torch's fused Adam calls are run."""

    def nothing(*arguments: object, **keywords: object) -> None:
        pass

    with (
        mock.patch.dict(BACKENDS, triton=OnTheHost()),
        mock.patch.object(triton_backend, "start", nothing),
        mock.patch.object(triton_backend, "compile_only", nothing),
        mock.patch.object(torch, "_fused_adam_", nothing),
        mock.patch.object(torch, "_foreach_add_", nothing),
    ):
        yield


def measure(device: torch.device, rounds: int, *, moving: bool) -> dict[str, list[float]]:
    """Seconds of every plain step, one optimizer after the other."""
    weights = [torch.nn.Parameter(torch.randn(ELEMENTS, device=device)) for _ in range(TENSORS)]
    gradients = [[torch.randn_like(weight) for weight in weights] for _ in range(1 + moving)]
    optimizers: dict[str, Callable[[], object]] = {
        ADAM: torch.optim.Adam(weights, lr=1e-6, fused=True).step,
        OURS: FusedSaLSa(
            weights, backend="triton", search_period=None, init_step_size=1e-6
        ).step,
    }  # fmt: skip
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for index in range(-3, rounds):
        for name, step in optimizers.items():
            for weight, gradient in zip(weights, gradients[index % len(gradients)]):
                weight.grad = gradient
            if not moving:
                step()  # so that the other optimizer's step is not what it comes after
            wait()
            start = time.perf_counter()
            step()
            if index >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def rows_of(case: str, seconds: dict[str, list[float]]) -> list[Row]:
    rows = []
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds[ADAM])]
        rows.append(results.timed_row("host", case, name, "time", "us", [1e6 * t for t in own]))
        rows.append(results.timed_row("host", case, name, "to_fused", "1", ratios))
    return rows


def host_table(measured: Results) -> Table:
    sections = []
    for case, title in CASES.items():
        rows = {}
        for name in (ADAM, OURS):
            cells = []
            for metric, digits in (("time", 0), ("to_fused", 2)):
                row = measured.row(case, name, metric)
                spread = f"{row.low:.{digits}f}\N{EN DASH}{row.high:.{digits}f}"
                cells.append(
                    Cell(f"{row.median:.{digits}f}", spread if row.low != row.high else "")
                )
            rows[name] = cells
        sections.append(Section(title, rows))
    settings = measured.settings
    launches = "copies and launches left out of both"
    if settings["launches"]:
        launches = "launches included"
    caption = (
        f"Host time of a plain step, {settings['tensors']} tensors, {launches}; medians of "
        f"{settings['rounds']} rounds in turn, in brackets the 10 % and 90 % quantiles."
    )
    return Table(("us", "time to\nfused Adam's"), sections, caption, ("case", "optimizer"))
