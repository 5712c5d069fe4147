"""What commands check and say in the same way: the device, names, a file, bars, the end."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from bench.results import Results
from bench.tables import Table, to_rich

LOCAL = Path("bench/results/local")


def chosen_device(name: str | None) -> torch.device:
    """The device that was asked for, or the GPU where there is one."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and found == "cpu":
        raise SystemExit("--device cuda: this torch finds no GPU; leave the option out")
    return torch.device(name or found)


def check_names(option: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise SystemExit(f"{option}: {name!r} is none of {', '.join(map(repr, known))}")


def check_amount(arguments: argparse.Namespace) -> None:
    if arguments.seeds < 1 or not 0 < getattr(arguments, "work", 1.0) < math.inf:
        raise SystemExit("--seeds and --work: at least one seed, and some work")


def check_writable(file: Path) -> None:
    """Make the folder of `file`; exit where it cannot be written, before hours of work."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise SystemExit(f"--json {file}: cannot be written ({error})") from None


def quiet_console() -> Console:
    """Without colours for numbers and paths."""
    return Console(highlight=False)


def progress_bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    return Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=console)


def finish(measured: Results, table: Table, file: Path, console: Console, *more: Path) -> int:
    """Write a benchmark's file and show its table; return the exit code."""
    measured.write(file)
    console.print(to_rich(table))
    console.print(table.caption, style="dim")
    console.print(f"\nWrote {', '.join(map(str, (file, *more)))}.")
    return 0


def in_one_line(error: Exception) -> str:
    """Return its message for a caption: the reason may stand in a later line than the first."""
    return " ".join(str(error).split())[:160]
