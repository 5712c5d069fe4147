"""A small vision transformer: mixup, label smoothing, clipped, AdamW with warm-up and cosine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models import parameter_count
from bench.models.vit import ViT
from bench.scripts.loop import (
    Training,
    at_least_one,
    warm_up_and_cosine_to,
    without_decay_of_vectors,
)
from bench.scripts.script import Run, Script, Way
from bench.sets.batches import Batch, shuffled
from bench.sets.digits import digits

CASE = "tiny-vit"
STEPS = 400
BATCH, WIDTH, LAYERS, PATCH = 64, 64, 4, 2
CLIP, DECAY, SMOOTHING, MIXUP = 1.0, 0.05, 0.1, 0.8
SCHEDULE = warm_up_and_cosine_to(0.0)


def script(
    work: float = 1.0, width: int = WIDTH, images: Callable[[], tuple[Batch, Batch]] = digits
) -> Script:
    steps = at_least_one(work * STEPS)
    data, validation = images()
    model = partial(ViT, layers=LAYERS, width=width, patch=PATCH)

    def train(way: Way, seed: int) -> Run:
        torch.manual_seed(seed)
        vit = model()
        groups = without_decay_of_vectors(vit, DECAY)
        training = Training(way, groups, vit, steps, max_grad_norm=CLIP)
        batches = shuffled(data, BATCH, torch.Generator().manual_seed(seed))
        shares = np.random.default_rng(seed)
        for _ in training.steps():
            inputs, targets = mixed(next(batches), shares.beta(MIXUP, MIXUP))
            training.step(partial(_loss, vit, inputs, targets))
        run = training.run(CASE, seed)
        with torch.no_grad():
            correct = vit.eval()(validation.inputs).argmax(1) == validation.targets
        run.scores["validation_accuracy"] = float(correct.float().mean())
        return run

    return Script(
        case=CASE,
        title="Small ViT",
        description=(
            f"digits in {(8 // PATCH) ** 2} patches, {parameter_count(model()):,} parameters, "
            f"batch {BATCH}, mixup, label smoothing {SMOOTHING:g}, clip {CLIP:g}"
        ),
        own=(Way("AdamW", "lr=1e-3, warm-up and cosine", adamw, SCHEDULE),),
        train=train,
        schedules={", scheduled": SCHEDULE},
        score="validation accuracy",
        shown=("validation_accuracy",),
    )


def adamw(params: Any, module: nn.Module, *, max_grad_norm: float | None = None) -> Any:
    return torch.optim.AdamW(params, lr=1e-3)


def mixed(batch: Batch, share: float) -> tuple[Tensor, Tensor]:
    """Mixup with the batch in reverse order, on smoothed labels."""
    labels = F.one_hot(batch.targets, 10).float() * (1 - SMOOTHING) + SMOOTHING / 10
    inputs = share * batch.inputs + (1 - share) * batch.inputs.flip(0)
    return inputs, share * labels + (1 - share) * labels.flip(0)


def _loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets)
