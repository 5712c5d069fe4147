"""Without a search several ranks work, and stay equal."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from salsa_fused import FusedSaLSa

def train(style):
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    model = DistributedDataParallel(net)
    optimizer = FusedSaLSa(model.parameters(), lr=1e-2, search_period=None)
    for step in range(5):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * step + rank))
        bad = float("nan") if step == 2 and rank == 1 else 1.0

        def closure():
            return bad * model(x).square().mean()

        if style == "closure":
            optimizer.step(closure)
        else:
            optimizer.zero_grad()
            loss = closure()
            loss.backward()
            optimizer.step(loss=loss)
    mine = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    counts = [optimizer.param_groups[0][name] for name in ("steps", "skipped_steps")]
    found = torch.cat([mine, torch.tensor(counts, dtype=mine.dtype)])
    everywhere = [torch.empty_like(found) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, found)
    assert all(torch.equal(found, other) for other in everywhere), (style, everywhere)
    assert torch.isfinite(found).all() and counts == [4, 1], (style, counts)

dist.init_process_group("gloo")
rank = dist.get_rank()
for style in ("closure", "loss"):
    train(style)
dist.barrier()
dist.destroy_process_group()
print("equal")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_on_all(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    port = str(free_port())
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    runs = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, **common, "RANK": str(rank), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for run in runs:
            out, err = run.communicate(timeout=120)
            assert out.strip() == "equal", err
    finally:
        for run in runs:
            run.kill()
