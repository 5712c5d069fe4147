"""Trainers on two ranks, by torchrun: the same decisions as in one process on the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

for name in ("accelerate", "lightning", "transformers"):
    pytest.importorskip(name)

HERE = Path(__file__).parent
LONGEST = 240  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed"),
]


def torchrun(*arguments: str) -> None:
    """Run a script on two ranks; whatever goes wrong, it ends in time."""
    path = os.pathsep.join([str(HERE), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=LONGEST
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("ranks")
    torchrun(str(HERE / "on_two_ranks.py"), str(found))
    return found


@pytest.mark.parametrize(
    "name", ["accelerate_ddp", "transformers_ddp", "lightning_ddp", "lightning_fsdp2"]
)
@pytest.mark.filterwarnings("ignore")
def test_as_in_one_process(name, folder, tmp_path):
    import on_two_ranks

    first, second = (json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(2))
    expected = getattr(on_two_ranks, name)(tmp_path)
    assert first["search"] == second["search"] and first["weights"] == second["weights"]
    assert first["warnings"] == second["warnings"] == []
    assert first["search"] == pytest.approx(expected["search"], rel=1e-3)
    assert first["search"][2:] == expected["search"][2:]  # counts
    assert first["weights"] == pytest.approx(expected["weights"], rel=1e-3)
    losses = [sum(pair) / 2 for pair in zip(first["losses"], second["losses"])]
    assert losses == pytest.approx(expected["losses"], rel=1e-3)


def test_the_example(tmp_path):
    example = HERE.parent.parent / "examples" / "fsdp2.py"
    script = tmp_path / "run.py"
    script.write_text(
        f"import runpy\nmain = runpy.run_path({str(example)!r})['main']\nassert main(2) > 0.7\n"
    )
    torchrun(str(script))
