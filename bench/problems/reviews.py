"""Problems on rated movie-review snippets: a pretrained MiniLM tells whether a film was liked."""

from __future__ import annotations

import torch
from torch import nn

from bench.models import parameter_count
from bench.models.bert import MINILM_L6, Bert, BertClassifier
from bench.problems.common import checkpoints
from bench.sets.batches import Batch, in_parts, on, shuffled
from bench.sets.reviews import minilm_weights, reviews, trimmed
from bench.training import Problem

REVIEWS_STEPS = 160  # a quarter of an epoch
REVIEWS_BATCH = 16
REVIEWS_SAMPLE = 256  # snippets of the training set that are evaluated
SMALL_STEPS, SMALL_BATCH, SMALL_SAMPLE = 60, 8, 64


def reviews_minilm(device: torch.device, plain_steps: int = REVIEWS_STEPS) -> Problem:
    """All weights are fine-tuned."""
    return _reviews(
        device, plain_steps, "minilm", "MiniLM on reviews", REVIEWS_BATCH, REVIEWS_SAMPLE,
        every=2, evaluations=6,
    )  # fmt: skip


def reviews_minilm_b8(device: torch.device, plain_steps: int = SMALL_STEPS) -> Problem:
    """The same with small batches, and short."""
    return _reviews(
        device, plain_steps, "minilm-b8", "MiniLM on reviews, batch 8", SMALL_BATCH, SMALL_SAMPLE,
        every=16, evaluations=5,
    )  # fmt: skip


def _reviews(
    device: torch.device,
    plain_steps: int,
    case: str,
    title: str,
    batch: int,
    sampled: int,
    *,
    every: int,
    evaluations: int,
) -> Problem:
    """Evaluated on `sampled` training snippets and on one of `every` for validation."""
    train, validation = reviews()
    weights = minilm_weights()
    by_length = validation.inputs.ne(0).sum(1).argsort(stable=True)[::every]
    validation = Batch(validation.inputs[by_length], validation.targets[by_length])
    sample = Batch(train.inputs[:sampled], train.targets[:sampled])

    def model() -> nn.Module:
        bert = Bert(MINILM_L6)
        bert.load_state_dict(weights)
        return BertClassifier(bert, classes=2, mean=True)

    def fixed(part: Batch) -> list[Batch]:
        return [on(device, trimmed(one)) for one in in_parts(part, 128)]

    return Problem(
        case=f"reviews-{case}",
        title=title,
        description=(
            f"{parameter_count(model()):,} parameters, pretrained, dropout; "
            f"{len(train.targets):,} snippets, batch {batch}"
        ),
        evaluated_on=f"{sampled} training and {len(by_length)} validation snippets",
        model=model,
        batches=lambda generator: map(trimmed, shuffled(train, batch, generator)),
        train_sample=fixed(sample),
        validation_sample=fixed(validation),
        plain_steps=plain_steps,
        checkpoints=checkpoints(plain_steps, most=evaluations),
    )
