"""Weights that are trained here once, and kept: for problems that go on from them.

A file's name has the digest of its recipe, so that another recipe never finds it; on one machine
the recipe gives the same weights each time.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.losses import cross_entropy
from bench.sets import batches as batches_module
from bench.sets.batches import Batch
from bench.sets.fetch import CACHE, shown

Batches = Callable[[torch.Generator], Iterator[Batch]]


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, beside the sources of the model and of this file."""

    name: str
    data: str  # in words, with a digest where they could be others
    model: Callable[[], nn.Module]
    settings: str  # of the model, in words
    batches: Batches
    steps: int
    lr: float = 3e-3
    seed: int = 0

    @property
    def file(self) -> str:
        said = [self.name, self.data, self.settings, self.steps, self.lr, self.seed]
        with torch.device("meta"):  # draws no random numbers
            model = self.model()
        modules = [type(model).__module__, batches_module.__name__, __name__]
        sources = [inspect.getsource(sys.modules[name]) for name in modules]
        digest = hashlib.sha256(json.dumps([*said, *sources]).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}.pt"


def pretrained(recipe: Recipe, cache: Path = CACHE) -> dict[str, Tensor]:
    """The state dict, on the CPU; it is trained where no file of this recipe is there."""
    path = cache / recipe.file
    if not path.exists():
        print(f"Training {shown(path)}: {recipe.steps} steps, once.", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        torch.save(_trained(recipe), unfinished)
        unfinished.replace(path)
    return torch.load(path)


def _trained(recipe: Recipe) -> dict[str, Tensor]:
    """With AdamW, a warm-up and a cosine; one thread, since sums depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = recipe.model()
            optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, recipe.lr, recipe.steps, pct_start=0.1, cycle_momentum=False
            )
            batches = recipe.batches(torch.Generator().manual_seed(recipe.seed))
            for _ in range(recipe.steps):
                inputs, targets = next(batches)
                optimizer.zero_grad()
                cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                scheduler.step()
    finally:
        torch.set_num_threads(threads)
    return model.state_dict()
