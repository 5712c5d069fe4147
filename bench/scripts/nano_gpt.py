"""A character GPT: AdamW with a warm-up and a cosine to a tenth, clipped, matrices decay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from bench.losses import cross_entropy
from bench.models import parameter_count
from bench.models.gpt import GPT
from bench.scripts.loop import (
    Training,
    at_least_one,
    warm_up_and_cosine_to,
    without_decay_of_vectors,
)
from bench.scripts.script import Run, Script, Way
from bench.sets.batches import random_windows, spread_windows
from bench.sets.plays import Text, plays

CASE = "nano-gpt"
STEPS = 300
BATCH, CONTEXT, WIDTH = 12, 64, 128
CLIP, DECAY = 1.0, 0.1
SCHEDULE = warm_up_and_cosine_to(0.1)
OWN = "lr=1e-3, betas 0.9 and 0.99, warm-up, cosine to a tenth"


def script(work: float = 1.0, width: int = WIDTH, text: Callable[[], Text] = plays) -> Script:
    steps, characters = at_least_one(work * STEPS), text()
    model = partial(GPT, len(characters.alphabet), CONTEXT, width=width, dropout=0.0)

    def train(way: Way, seed: int) -> Run:
        torch.manual_seed(seed)
        gpt = model()
        groups = without_decay_of_vectors(gpt, DECAY)
        training = Training(way, groups, gpt, steps, max_grad_norm=CLIP)
        generator = torch.Generator().manual_seed(seed)
        batches = random_windows(characters.train, CONTEXT, BATCH, generator)
        for _ in training.steps():
            inputs, targets = next(batches)
            training.step(partial(_loss, gpt, inputs, targets))
        run = training.run(CASE, seed)
        with torch.no_grad():
            fixed = spread_windows(characters.validation, CONTEXT, 128)
            run.scores["validation_loss"] = float(_loss(gpt, *fixed))
        return run

    return Script(
        case=CASE,
        title="nanoGPT's loop",
        description=(
            f"a character GPT, {parameter_count(model()):,} parameters, batch {BATCH} x {CONTEXT}, "
            f"clip {CLIP:g}, decay {DECAY:g} on matrices"
        ),
        own=(Way("AdamW", OWN, adamw, SCHEDULE),),
        train=train,
        schedules={", scheduled": SCHEDULE, "": None},
        score="validation loss",
        shown=("validation_loss",),
    )


def adamw(params: Any, module: nn.Module, *, max_grad_norm: float | None = None) -> Any:
    return torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.99))


def _loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(model(inputs), targets)
