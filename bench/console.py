"""What commands check and say in the same way: the device, names, a file, bars, the end."""

import argparse
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from bench.results import Results
from bench.tables import Table, to_rich

LOCAL = Path("bench/results/local")
CONSOLE = Console(highlight=False)  # no colours for numbers and paths


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


@contextmanager
def left_out(missing: dict[str, str], what: str) -> Iterator[None]:
    """Say what fails, a peer that is not there or what has no room, and why: the rest counts."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        no_room = isinstance(error, torch.OutOfMemoryError)
        why = " ".join(str(error).split())[:160]  # may stand in a later line than the first
        missing[what] = "no room" if no_room else f"{kind}{why}"
        CONSOLE.print(f"{what}: left out: {missing[what]}", style="yellow", markup=False)


def finish(measured: Results, table: Table, file: Path, *more: Path) -> int:
    """Write a benchmark's file and show its table; return the exit code."""
    measured.write(file)
    CONSOLE.print(to_rich(table, CONSOLE.width))
    CONSOLE.print(table.caption, style="dim")
    CONSOLE.print(f"\nWrote {', '.join(map(str, (file, *more)))}.")
    return 0
