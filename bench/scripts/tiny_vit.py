"""A small vision transformer: mixup, label smoothing, clipped, AdamW with warm-up and cosine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from bench.methods import warm_up_and_cosine
from bench.models import ViT
from bench.networks import parameter_count
from bench.scripts.script import Script, one_batch_a_step, own
from bench.sets.batches import Batch, shuffled
from bench.sets.digits import digits

BATCH, PATCH = 64, 2
CLIP, DECAY, SMOOTHING, MIXUP = 1.0, 0.05, 0.1, 0.8


def script(width: int = 64) -> Script:
    data, validation = digits()
    model = partial(ViT, layers=4, width=width, patch=PATCH)

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        shares = np.random.default_rng(generator.initial_seed())
        for batch in shuffled(data, BATCH, generator):
            yield mixed(batch, shares.beta(MIXUP, MIXUP))

    def scores(model: nn.Module) -> dict[str, float]:
        correct = model.eval()(validation.inputs).argmax(1) == validation.targets
        return {"validation_accuracy": float(correct.float().mean())}

    return Script(
        case="tiny-vit",
        title="Small ViT",
        description=(
            f"digits in {(8 // PATCH) ** 2} patches, {parameter_count(model()):,} parameters, "
            f"batch {BATCH}, mixup, label smoothing {SMOOTHING:g}, clip {CLIP:g}"
        ),
        own=(own("AdamW", "lr=1e-3, warm-up and cosine", AdamW, warm_up_and_cosine, lr=1e-3),),
        steps=400,
        train=one_batch_a_step(model, batches, _loss, scores, CLIP, DECAY),
        schedules={", scheduled": warm_up_and_cosine},
        score="validation accuracy",
        shown=("validation_accuracy",),
    )


def mixed(batch: Batch, share: float) -> tuple[Tensor, Tensor]:
    """Mixup with the batch in reverse order, on smoothed labels."""
    labels = F.one_hot(batch.targets, 10).float() * (1 - SMOOTHING) + SMOOTHING / 10
    inputs = share * batch.inputs + (1 - share) * batch.inputs.flip(0)
    return inputs, share * labels + (1 - share) * labels.flip(0)


def _loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets)
