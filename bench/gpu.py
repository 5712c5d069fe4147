"""The first hour on a GPU: tests, sanitizers, benches and the report, into a folder of its own.

Needs no network. What is in the folder already is skipped, so it goes on where it was stopped.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bench import console as c
from bench.kernels import KERNELS
from bench.results import REPOSITORY, Results

OF_COPY, TO_FUSED = 0.90, 1.00  # the goals: a kernel's bandwidth, and a plain step's time
PLAIN = "a plain step, triton"
TESTS = "tests/kernels/test_cuda.py"


class Stage(NamedTuple):
    """A command, and the file in the folder that is there when it is through."""

    name: str
    command: Sequence[str]
    minutes: float  # at most
    leaves: str  # a .json that the command writes, or a .txt of what it printed


def stages(folder: Path) -> list[Stage]:
    """All, in their order: an hour at most."""
    python = sys.executable

    def tests(name: str, minutes: float, *how: str, before: Sequence[str] = ()) -> Stage:
        command = [*before, python, "-m", "pytest", "-q", TESTS, *how]
        return Stage(name, command, minutes, f"{name}.txt")

    def bench(name: str, minutes: float, *how: str) -> Stage:
        file = folder / f"{name}.json"
        command = [python, "-m", "bench", name, "--device", "cuda", *how, "--json", str(file)]
        return Stage(name, command, minutes, file.name)

    found = [tests("tests", 10)]
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool, cases in (("memcheck", "sizes and native"), ("racecheck", "slope and native")):
            before = (sanitizer, "--tool", tool, "--error-exitcode", "1")
            found.append(tests(tool, 4, "-k", cases, before=before))
    report = [python, "-m", "bench", "report", "--folder", str(folder)]
    return [
        *found, bench("kernels", 12, "--rounds", "20"), bench("host", 2),
        bench("step", 12, "--rounds", "3"), bench("memory", 6),
        bench("train", 8, "--seeds", "1", "--data", "digits-cnn", "digits-mlp"),
        Stage("report", report, 1, "report.txt"),
    ]  # fmt: skip


def gpu(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        raise SystemExit("gpu: this torch finds no GPU")
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    folder = arguments.out / name
    folder.mkdir(parents=True, exist_ok=True)
    failed = {}
    for stage in stages(folder):
        if (folder / stage.leaves).exists():
            c.CONSOLE.print(f"{stage.name}: there already")
            continue
        c.CONSOLE.print(f"{stage.name}: {stage.minutes:g} minutes at most")
        if (reason := run(stage, folder)) is not None:
            failed[stage.name] = reason
            c.CONSOLE.print(f"{stage.name}: {reason}", style="yellow")
    text = "\n".join(summary(folder, failed))
    (folder / "summary.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if failed else 0


def run(stage: Stage, folder: Path) -> str | None:
    """Run a stage; return why it failed, or None.  What it printed stays in a file."""
    log = folder / f"{stage.name}.part.txt"
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                stage.command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT,
                timeout=60 * stage.minutes,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"stopped after {stage.minutes:g} minutes"
    if done.returncode != 0:
        return f"exit status {done.returncode}: {log}"
    if stage.leaves.endswith(".txt"):
        log.rename(folder / stage.leaves)
    else:
        log.unlink()
    return None


def summary(folder: Path, failed: dict[str, str]) -> list[str]:
    """Five lines: tests, sanitizers, both goals, and what is missing."""
    file = folder / "kernels.json"
    rows = Results.read(file).rows if file.exists() else []
    names = {f"{title}, triton" for title, *_ in KERNELS.values()} | {PLAIN}
    shares = {
        f"{row.optimizer} ({row.case})": row.median
        for row in rows if row.metric == "of_copy" and row.optimizer in names
    }  # fmt: skip
    times = {  # where both keep their moments in fp32
        row.case: row.median for row in rows
        if row.metric == "to_fused" and row.optimizer == PLAIN and "fp32" in row.case
    }  # fmt: skip
    tools = [f"{tool}: {last_line(folder / f'{tool}.txt')}" for tool in ("memcheck", "racecheck")]
    return [
        f"tests: {last_line(folder / 'tests.txt')}",
        "; ".join(tools),
        goal(f"kernels at least {OF_COPY} of a copy's bandwidth", shares, OF_COPY),
        goal(f"a plain step in fp32 at most {TO_FUSED} of fused AdamW's time", times, TO_FUSED, -1),
        "failed: " + ("; ".join(f"{name}: {why}" for name, why in failed.items()) or "nothing"),
    ]


def last_line(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip().split("\n")[-1] if file.exists() else "not run"


def goal(what: str, found: dict[str, float], limit: float, sign: int = 1) -> str:
    """Say whether a goal holds, with the worst of what was found."""
    if not found:
        return f"{what}: not measured"
    worst = min(found, key=lambda name: sign * found[name])
    holds = "holds" if sign * found[worst] >= sign * limit else "does NOT hold"
    return f"{what}: {holds} (worst: {worst}, {found[worst]:.2f})"
