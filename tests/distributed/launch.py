"""Runs checks in processes of torch.distributed, on this machine and with gloo.

``python launch.py FOLDER NAME ...`` runs these checks, of 1, 2 or 4 ranks each, and writes
``FOLDER/NAME.txt`` for every one: empty, or what failed.  Torch is imported once and every rank is
a fork: imports are what such tests cost most.  Nothing outlives its time: a rank that waits for
another one gives up after ``PATIENCE``, and whoever is left is killed.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.distributed.tensor.parallel

HERE = Path(__file__).parent
PATIENCE = 40  # seconds
MODULES = tuple(sorted(path.stem for path in HERE.glob("checks_*.py")))


class Check(NamedTuple):
    """A function that every one of some ranks runs."""

    run: Callable[[], None]
    ranks: int
    in_a_group_of_its_own: bool


CHECKS: dict[str, Check] = {}


def check(ranks: int, *, alone: bool = False) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a check under its name; ``alone``: its ranks run nothing else."""

    def register(run: Callable[[], None]) -> Callable[[], None]:
        CHECKS[run.__name__] = Check(run, ranks, alone)
        return run

    return register


@check(2)
def fails() -> None:
    """On one rank, while the other one waits for it: to see that it ends and is told."""
    assert dist.get_rank() != 1, "fails on rank 1"
    dist.barrier()


def run_one_rank(folder: Path, names: list[str], rank: int, ranks: int, meeting: Path) -> None:
    """Run the checks of one rank; what fails ends the run, for ranks may be apart then."""
    faulthandler.dump_traceback_later(12 * PATIENCE, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=PATIENCE),
    )
    for name in names:
        began = time.perf_counter()
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                CHECKS[name].run()
            here = [str(one.message) for one in said if Path(one.filename).parent == HERE]
            assert not here, here  # the optimizer's point at the line that calls it
            if not CHECKS[name].in_a_group_of_its_own:  # where one may be gone
                dist.barrier()
        except BaseException:
            text = f"rank {rank} of {ranks}:\n{traceback.format_exc()}"
            (folder / f"{name}.{rank}.failed").write_text(text)
            os._exit(1)
        if rank == 0:
            (folder / f"{name}.seconds").write_text(f"{time.perf_counter() - began:.2f}")
        (folder / f"{name}.{rank}.passed").write_text("")
    if not CHECKS[names[0]].in_a_group_of_its_own:
        dist.destroy_process_group()
    os._exit(0)


def run_group(folder: Path, names: list[str], ranks: int) -> None:
    """Fork the ranks, wait for them, and kill those that are left when one has failed."""
    meeting = folder / f"meeting-{ranks}-{names[0]}"
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            try:
                run_one_rank(folder, names, rank, ranks, meeting)
            finally:
                traceback.print_exc()
                os._exit(2)
        children.append(child)
    failed_at = None
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            children.remove(child)
            if status:
                failed_at = failed_at or time.monotonic()
        elif failed_at is not None and time.monotonic() - failed_at > 5:
            for left in children:
                os.kill(left, signal.SIGKILL)
        time.sleep(0.01)


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    sys.modules["launch"] = sys.modules["__main__"]
    for module in MODULES:
        importlib.import_module(module)
    for name in [name for name in names if CHECKS[name].in_a_group_of_its_own]:
        run_group(folder, [name], CHECKS[name].ranks)
    for ranks in (2, 4, 1):  # what is saved on 2 is loaded on 4 and 1
        shared = [
            name
            for name in names
            if CHECKS[name].ranks == ranks and not CHECKS[name].in_a_group_of_its_own
        ]
        if shared:
            run_group(folder, shared, ranks)


if __name__ == "__main__":
    main()
