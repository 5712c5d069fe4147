"""`--device`, the same for every command."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU"
    )


def chosen_device(name: str | None) -> torch.device:
    """The device that was asked for, or the GPU where there is one."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and found == "cpu":
        raise SystemExit("--device cuda: this torch finds no GPU; leave the option out")
    return torch.device(name or found)


def check_writable(file: Path) -> None:
    """Before hours of work: `file` can be written, and its folder is there."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise SystemExit(f"--json {file}: cannot be written ({error})") from None


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
