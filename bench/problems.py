"""The demo's two problems: data, model, batch size and budget, the same for every optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench import data
from bench.data import Batch, Text
from bench.models import CharGPT, DigitsCNN, parameter_count
from bench.training import Problem

DIGITS_STEPS = 800  # 36 epochs
DIGITS_BATCH = 64
GPT_STEPS = 250
GPT_BATCH = 16
GPT_CONTEXT = 64
GPT_WIDTH = 96
GPT_SAMPLE = (3, 32)  # batches, and windows in each, of a fixed sample: 6,144 characters


def digits_cnn(device: torch.device, plain_steps: int = DIGITS_STEPS) -> Problem:
    """A CNN with BatchNorm on scikit-learn's handwritten digits."""
    train, validation = (Batch(*(t.to(device) for t in part)) for part in data.digits())
    return Problem(
        case="digits-cnn",
        title="CNN on digits",
        description=(
            f"{parameter_count(DigitsCNN()):,} parameters, BatchNorm; "
            f"{len(train.targets):,} images, batch {DIGITS_BATCH}"
        ),
        evaluated_on="all its images",
        model=DigitsCNN,
        batches=lambda generator: data.shuffled(train, DIGITS_BATCH, generator),
        train_sample=[train],
        validation_sample=[validation],
        plain_steps=plain_steps,
        checkpoints=_checkpoints(plain_steps),
        log_loss=True,
    )


def plays_gpt(
    device: torch.device,
    plain_steps: int = GPT_STEPS,
    text: Callable[[], Text] = data.plays,
) -> Problem:
    """A character-level GPT with dropout on Shakespeare's plays."""
    characters = text()
    model = partial(CharGPT, len(characters.alphabet), GPT_CONTEXT, width=GPT_WIDTH)

    def sample(part: torch.Tensor) -> list[Batch]:
        batches, size = GPT_SAMPLE
        inputs, targets = data.spread_windows(part, GPT_CONTEXT, batches * size)
        return [
            Batch(x.to(device), y.to(device))
            for x, y in zip(inputs.split(size), targets.split(size), strict=True)
        ]

    return Problem(
        case="plays-gpt",
        title="GPT on plays",
        description=(
            f"{parameter_count(model()):,} parameters, dropout; "
            f"{len(characters.train) / 1e6:.1f} M characters, batch {GPT_BATCH} x {GPT_CONTEXT}"
        ),
        evaluated_on=f"{GPT_SAMPLE[0] * GPT_SAMPLE[1]} fixed windows",
        model=model,
        batches=lambda generator: data.random_windows(
            characters.train, GPT_CONTEXT, GPT_BATCH, generator
        ),
        train_sample=sample(characters.train),
        validation_sample=sample(characters.validation),
        plain_steps=plain_steps,
        checkpoints=_checkpoints(plain_steps),
    )


def _checkpoints(plain_steps: int) -> int:
    """Enough for a curve; fewer where evaluations would take longer than the training."""
    return max(1, min(15, plain_steps // 10))
