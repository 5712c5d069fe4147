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
from bench.scripts.loop import (
    Run,
    Script,
    Training,
    Way,
    at_least_one,
    warm_up_and_cosine_to,
    without_decay_of_vectors,
)
from bench.sets.batches import Batch, shuffled
from bench.sets.digits import digits

CASE = "tiny-vit"
STEPS = 400
BATCH, WIDTH, LAYERS, HEADS, PATCH = 64, 64, 4, 4, 2
CLIP, DECAY, SMOOTHING, MIXUP = 1.0, 0.05, 0.1, 0.8
SCHEDULE = warm_up_and_cosine_to(0.0)


class Vit(nn.Module):
    """Images (batch, 1, 8, 8) -> logits (batch, 10), by way of 16 patches and a class token."""

    def __init__(self, width: int = WIDTH, layers: int = LAYERS) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (8 // PATCH) ** 2, width))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, HEADS, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def script(
    work: float = 1.0, width: int = WIDTH, images: Callable[[], tuple[Batch, Batch]] = digits
) -> Script:
    steps = at_least_one(work * STEPS)
    data, validation = images()

    def train(way: Way, seed: int) -> Run:
        torch.manual_seed(seed)
        vit = Vit(width)
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
            f"digits in {(8 // PATCH) ** 2} patches, {parameter_count(Vit(width)):,} parameters, "
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
