"""What a plain step of DTensors costs the host, beside torch's AdamW: `python -m bench.dtensors`.

One rank of gloo has all of every weight. The weights have too few elements to cost anything but the
host; time is that of the thread, so that other processes count for little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from bench.kernels import Call

TENSORS, ELEMENTS = 200, 16
FUSED = "AdamW, fused"
WARM_UP = 3  # rounds


def measure(rounds: int, *, spread: bool) -> dict[str, list[float]]:
    """Seconds of every plain step, in turn; `spread`: of DTensors, not of plain tensors."""
    steps: dict[str, Call] = {
        "FusedSaLSa": _plain_steps(_weights(spread)),
        FUSED: torch.optim.AdamW(_weights(spread), lr=1e-6, fused=True).step,
        "AdamW, foreach": torch.optim.AdamW(_weights(spread), lr=1e-6, foreach=True).step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARM_UP + rounds):
        for name, step in steps.items():
            step()  # so that the other optimizer's step is not what it comes after
            began = time.thread_time()
            step()
            seconds[name].append(time.thread_time() - began)
    return {name: own[WARM_UP:] for name, own in seconds.items()}


def _weights(spread: bool) -> list[Tensor]:
    mesh = init_device_mesh("cpu", (1,))
    weights: list[Tensor] = []
    for _ in range(TENSORS):
        weight, gradient = torch.randn(ELEMENTS), torch.randn(ELEMENTS)
        if spread:
            weight, gradient = (distribute_tensor(x, mesh, [Shard(0)]) for x in (weight, gradient))
        weights.append(nn.Parameter(weight))
        weights[-1].grad = gradient
    return weights


def _plain_steps(weights: list[Tensor]) -> Call:
    from salsa_fused import FusedSaLSa

    return FusedSaLSa(weights, search_period=None, init_step_size=1e-6).step


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder, 'meeting')}"
        dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
        try:
            for spread in (False, True):
                print(f"{TENSORS} {'DTensors' if spread else 'plain tensors'}")
                seconds = measure(rounds, spread=spread)
                for name, own in seconds.items():
                    ratios = [a / b for a, b in zip(own, seconds[FUSED])]
                    low, ratio, high = quantiles(ratios)
                    print(
                        f"  {name:15} {1e6 * median(own):8.0f} us, least {1e6 * min(own):6.0f}; "
                        f"to fused AdamW {ratio:.2f} ({low:.2f} to {high:.2f})"
                    )
        finally:
            dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=150)
    main(parser.parse_args().rounds)
