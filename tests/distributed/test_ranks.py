"""Several ranks: every check of ``checks_*.py``, all of them in one launch (see launch.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
LONGEST = 600  # seconds, of a launch
CHECK = re.compile(r"^@check\((\d)[^)]*\)\ndef (\w+)", re.MULTILINE)
NAMES = [
    name for path in sorted(HERE.glob("checks_*.py")) for _, name in CHECK.findall(path.read_text())
]
SLOW = re.compile(  # in `make test-slow`
    "on_4|continued|hsdp|noticed|dies|for_200|compiled|lamb_under|units_under|mixed_precision|"
    "from_rank_0|keeps_gathered|in_fp32|without_torchs"
)

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and hasattr(os, "fork")),
    reason="torch has no distributed package, or the system no fork",
)


def launch(folder: Path, names: list[str]) -> None:
    """Run these checks; whoever comes first does, and others wait for it."""
    try:
        folder.mkdir()
    except FileExistsError:  # another process of pytest-xdist runs them
        until = time.monotonic() + LONGEST
        while not (folder / "done").exists() and time.monotonic() < until:
            time.sleep(0.2)
        return
    path = os.pathsep.join([str(HERE), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "launch.py"), str(folder), *names]
    try:
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LONGEST
        )
        (folder / "output").write_text(run.stdout[-5000:] + run.stderr[-5000:])
    finally:
        (folder / "done").touch()


@pytest.fixture(scope="session")
def results(request, tmp_path_factory):
    """Run all checks that are selected, together; where their results are."""
    here = [item for item in request.session.items if item.path == Path(__file__)]
    selected = [item.callspec.params["name"] for item in here if hasattr(item, "callspec")]
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers
    folder = base / "ranks"
    launch(folder, selected)
    return folder


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if SLOW.search(n) else n for n in NAMES],
)
def test_ranks(name, results):
    failed = sorted(results.glob(f"{name}.*.failed"))
    assert not failed, "\n".join(path.read_text() for path in failed)
    if not (results / f"{name}.0.passed").exists():
        first = sorted(results.glob("*.failed"))[:1]
        why = first[0].read_text() if first else (results / "output").read_text()
        pytest.fail(f"{name} was not run, for another one failed before it:\n{why}")


def test_a_check_that_fails_is_told(tmp_path):
    folder = tmp_path / "ranks"
    launch(folder, ["fails"])
    assert not list(folder.glob("*.passed"))
    assert "fails on rank 1" in (folder / "fails.1.failed").read_text()
