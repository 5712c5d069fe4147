"""What is trained: data, model, batch size and budget, the same for every optimizer.

To add a workload, write a function that returns its `Problem`, and name it in `PROBLEMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from bench.models import parameter_count
from bench.models.bert import MINILM_L6, Bert, BertClassifier
from bench.models.gpt import GPT
from bench.models.small import DigitsCNN, DigitsMLP
from bench.sets.batches import Batch, in_parts, on, random_windows, shuffled, spread_windows
from bench.sets.digits import digits
from bench.sets.plays import Text, plays
from bench.sets.reviews import minilm_weights, reviews, trimmed
from bench.training import Problem

DIGITS_STEPS = 800  # 36 epochs
DIGITS_BATCH = 64
GPT_STEPS = 250
GPT_BATCH = 16
GPT_CONTEXT = 64
GPT_WIDTH = 96
GPT_SAMPLE = (3, 32)  # batches, and windows in each, of a fixed sample: 6,144 characters
REVIEWS_STEPS = 160  # a quarter of an epoch
REVIEWS_BATCH = 16
REVIEWS_SAMPLE = 256  # snippets of the training set that are evaluated


def digits_cnn(device: torch.device, plain_steps: int = DIGITS_STEPS) -> Problem:
    """A CNN with BatchNorm on scikit-learn's handwritten digits."""
    return _digits(device, plain_steps, "cnn", "CNN on digits", "BatchNorm", DigitsCNN)


def digits_mlp(device: torch.device, plain_steps: int = DIGITS_STEPS) -> Problem:
    """An MLP with dropout on scikit-learn's handwritten digits."""
    return _digits(device, plain_steps, "mlp", "MLP on digits", "dropout", DigitsMLP)


def _digits(
    device: torch.device,
    plain_steps: int,
    case: str,
    title: str,
    has: str,
    model: Callable[[], nn.Module],
) -> Problem:
    train, validation = (on(device, part) for part in digits())
    return Problem(
        case=f"digits-{case}",
        title=title,
        description=(
            f"{parameter_count(model()):,} parameters, {has}; "
            f"{len(train.targets):,} images, batch {DIGITS_BATCH}"
        ),
        evaluated_on="all its images",
        model=model,
        batches=lambda generator: shuffled(train, DIGITS_BATCH, generator),
        train_sample=[train],
        validation_sample=[validation],
        plain_steps=plain_steps,
        checkpoints=_checkpoints(plain_steps),
        log_loss=True,
    )


def plays_gpt(
    device: torch.device,
    plain_steps: int = GPT_STEPS,
    text: Callable[[], Text] = plays,
) -> Problem:
    """A character-level GPT with dropout on Shakespeare's plays."""
    characters = text()
    model = partial(GPT, len(characters.alphabet), GPT_CONTEXT, width=GPT_WIDTH)

    def sample(part: torch.Tensor) -> list[Batch]:
        batches, size = GPT_SAMPLE
        return in_parts(on(device, spread_windows(part, GPT_CONTEXT, batches * size)), size)

    return Problem(
        case="plays-gpt",
        title="GPT on plays",
        description=(
            f"{parameter_count(model()):,} parameters, dropout; "
            f"{len(characters.train) / 1e6:.1f} M characters, batch {GPT_BATCH} x {GPT_CONTEXT}"
        ),
        evaluated_on=f"{GPT_SAMPLE[0] * GPT_SAMPLE[1]} fixed windows",
        model=model,
        batches=lambda generator: random_windows(
            characters.train, GPT_CONTEXT, GPT_BATCH, generator
        ),
        train_sample=sample(characters.train),
        validation_sample=sample(characters.validation),
        plain_steps=plain_steps,
        checkpoints=_checkpoints(plain_steps),
    )


def reviews_minilm(device: torch.device, plain_steps: int = REVIEWS_STEPS) -> Problem:
    """A pretrained MiniLM, fine-tuned to tell whether a film was liked."""
    train, validation = reviews()
    weights = minilm_weights()
    by_length = validation.inputs.ne(0).sum(1).argsort(stable=True)[::2]
    validation = Batch(validation.inputs[by_length], validation.targets[by_length])
    sample = Batch(train.inputs[:REVIEWS_SAMPLE], train.targets[:REVIEWS_SAMPLE])

    def model() -> nn.Module:
        bert = Bert(MINILM_L6)
        bert.load_state_dict(weights)
        return BertClassifier(bert, classes=2, mean=True)

    def fixed(part: Batch) -> list[Batch]:
        return [on(device, trimmed(batch)) for batch in in_parts(part, 128)]

    return Problem(
        case="reviews-minilm",
        title="MiniLM on reviews",
        description=(
            f"{parameter_count(model()):,} parameters, pretrained, dropout; "
            f"{len(train.targets):,} snippets, batch {REVIEWS_BATCH}"
        ),
        evaluated_on=f"{REVIEWS_SAMPLE} training and {len(by_length)} validation snippets",
        model=model,
        batches=lambda generator: map(trimmed, shuffled(train, REVIEWS_BATCH, generator)),
        train_sample=fixed(sample),
        validation_sample=fixed(validation),
        plain_steps=plain_steps,
        checkpoints=max(1, min(6, plain_steps // 10)),
    )


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "digits-cnn": digits_cnn,
    "digits-mlp": digits_mlp,
    "plays-gpt": plays_gpt,
    "reviews-minilm": reviews_minilm,
}


def _checkpoints(plain_steps: int) -> int:
    """Enough for a curve; fewer where evaluations would take longer than the training."""
    return max(1, min(15, plain_steps // 10))
