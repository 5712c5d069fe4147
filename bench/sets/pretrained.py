"""Weights that are trained here once, and kept: for problems that go on from them.

A file's name has the digest of what decides them, so that another problem never finds it; on one
machine they come out the same each time.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from bench.sets.fetch import CACHE, shown
from bench.training import Problem

LR = 3e-3


def pretrained(problem: Problem, cache: Path = CACHE) -> dict[str, Tensor]:
    """The state dict, on the CPU; it is trained where there is no file of this problem."""
    path = cache / file_of(problem)
    if not path.exists():
        print(f"Training {shown(path)}: {problem.plain_steps} steps, once.", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        torch.save(_trained(problem), unfinished)
        unfinished.replace(path)
    return torch.load(path)


def file_of(problem: Problem) -> str:
    with torch.device("meta"):  # draws no random numbers
        model = type(problem.model()).__module__
    digest = hashlib.sha256(f"{problem.description}, {problem.plain_steps} steps".encode())
    for module in (model, __name__):
        digest.update(inspect.getsource(sys.modules[module]).encode())
    first = next(problem.batches(torch.Generator().manual_seed(0)))
    for tensor in (*first, *problem.train_sample[0]):
        digest.update(tensor.numpy().tobytes())
    return f"{problem.case}-{digest.hexdigest()[:12]}.pt"


def _trained(problem: Problem) -> dict[str, Tensor]:
    """With AdamW, a warm-up and a cosine; one thread, since sums depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = problem.model()
            optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, LR, problem.plain_steps, pct_start=0.1, cycle_momentum=False
            )
            batches = problem.batches(torch.Generator().manual_seed(0))
            for _, (inputs, targets) in zip(range(problem.plain_steps), batches):
                optimizer.zero_grad()
                problem.loss.of(model(inputs), targets).backward()
                optimizer.step()
                scheduler.step()
    finally:
        torch.set_num_threads(threads)
    return model.state_dict()
