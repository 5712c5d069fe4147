"""What torchrun runs on every rank: each trainer, and what it came to, as JSON.

``torchrun --nproc-per-node 2 on_two_ranks.py FOLDER`` writes ``FOLDER/NAME.RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import test_accelerate
import test_lightning
import test_transformers
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
Result = dict[str, Any]


def result_of(optimizer: Any, model: nn.Module, losses: list[float]) -> Result:
    """Return the search's numbers, the weights' and the losses."""
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    numbers = optimizer.metrics()
    names = ("step_size", "applied_step_size", "total_trials", "searches", "steps", "period")
    return {
        "search": [numbers[name] for name in names],
        "weights": [p.detach().double().square().sum().item() for p in whole],
        "losses": losses,
    }


def accelerate_ddp(folder: Path) -> Result:
    """With two micro-batches to a step, and clipping."""
    run = test_accelerate.Run(2, clip=0.1, dropout=0.0, norm=False, parts=WORLD).epoch()
    return result_of(run.evaluate.optimizer, run.model, run.losses)


def transformers_ddp(folder: Path) -> Result:
    trainer = test_transformers.trainer_of(
        folder / "hf",
        per_device_train_batch_size=4 // WORLD,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        ddp_backend="gloo" if WORLD > 1 else None,
        lr_scheduler_type="linear",
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return result_of(test_transformers.ours(trainer), trainer.model, losses)


def with_lightning(strategy: Any, kind: Any = test_lightning.Module) -> Result:
    module = kind(norm=False)
    data, size = test_lightning.make_loader().dataset, 8 // WORLD
    sampler = DistributedSampler(data, shuffle=False) if WORLD > 1 else None
    loader = DataLoader(data, batch_size=size, sampler=sampler)
    settings = {"strategy": strategy, "devices": WORLD} if WORLD > 1 else {}
    settings["use_distributed_sampler"] = False
    test_lightning.fit(module, loader, accumulate_grad_batches=2, gradient_clip_val=0.1, **settings)
    return result_of(module.optimizer, module.net, module.losses)


def lightning_ddp(folder: Path) -> Result:
    return with_lightning(DDPStrategy(process_group_backend="gloo") if WORLD > 1 else None)


class Sharded(test_lightning.Module):
    def configure_model(self) -> None:
        if WORLD > 1:
            mesh = self.device_mesh["data_parallel"]
            for layer in self.net:
                if isinstance(layer, nn.Linear):
                    fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)


def lightning_fsdp2(folder: Path) -> Result:
    strategy = ModelParallelStrategy(2, 1, process_group_backend="gloo") if WORLD > 1 else None
    return with_lightning(strategy, Sharded)


RUNS: list[Callable[[Path], Result]] = [
    accelerate_ddp,
    transformers_ddp,
    lightning_ddp,
    lightning_fsdp2,
]


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for run in RUNS:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = run(folder)
        texts = [str(one.message) for one in said]
        found["warnings"] = [text for text in texts if "search" in text or "check_replay" in text]
        (folder / f"{run.__name__}.{rank}.json").write_text(json.dumps(found))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
