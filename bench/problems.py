"""What is trained: data, model, loss, batch size and budget, the same for every optimizer.

To add a problem, name in `MAKE` what makes it for a device: `of_rows` or `of_plays` with what is
its own, or a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from bench import models
from bench.networks import MeanClassifier, bert, bert_config, gpt, parameter_count
from bench.sets import numbers
from bench.sets.batches import Batch, in_parts, on, random_windows, shuffled, spread_windows
from bench.sets.digits import digits, of_classes, with_wrong_labels
from bench.sets.pretrained import pretrained
from bench.sets.reviews import minilm_weights, reviews, trimmed
from bench.sets.text import plays
from bench.training import CPU, MEAN_SQUARE, Problem

Model = Callable[[], nn.Module]
Parts = Callable[[], Iterable[Batch]]  # rows to train on, and for validation
Make = Callable[[torch.device], Problem]


def made(case: str, make: Make, device: torch.device, steps: int | None = None) -> Problem:
    """The problem of that name, with its own number of steps, or with `steps`.

    Of a short training less often is evaluated, which would take longer than the training.
    """
    problem = replace(make(device), case=case)
    if steps is None:
        return problem
    checkpoints = max(1, min(problem.checkpoints, steps // 10))
    return replace(problem, plain_steps=steps, checkpoints=checkpoints)


def weights_before(case: str) -> dict[str, torch.Tensor]:
    return pretrained(made(case, BEFORE[case], CPU))


def of_rows(
    device: torch.device, *, steps: int, title: str, has: str, model: Model,
    parts: Parts, batch: int, what: str = "images",
    sampled: int | None = None, size: int | None = None, checkpoints: int = 15,
    change: Callable[[Batch], Batch] = lambda batch: batch, **more: Any,
) -> Problem:  # fmt: skip
    """A problem on rows of data, which are drawn in another order in every epoch.

    `sampled` training rows are evaluated (all), in batches of `size` (one, and all rows are on the
    device); `change` is made to every batch.
    """
    train, validation = parts()
    rows, checked = len(train.targets), len(validation.targets)
    if size is None:
        train, validation = on(device, train), on(device, validation)

    def fixed(part: Batch) -> list[Batch]:
        return [on(device, change(one)) for one in in_parts(part, size or len(part.targets))]

    return Problem(
        case="",
        title=title,
        description=(
            f"{parameter_count(model()):,} parameters, {has}; {rows:,} {what}, batch {batch}"
        ),
        evaluated_on=f"{sampled or rows:,} training and {checked:,} validation {what}",
        model=model,
        batches=lambda generator: map(change, shuffled(train, batch, generator)),
        train_sample=fixed(Batch(train.inputs[:sampled], train.targets[:sampled])),
        validation_sample=fixed(validation),
        plain_steps=steps,
        checkpoints=checkpoints,
        **more,
    )


WRONG_LABELS = 0.3
FIRST, SECOND = range(0, 5), range(5, 10)  # classes: to pre-train on, and to go on with
of_digits = partial(of_rows, parts=digits, batch=64, log_loss=True)
# Where all training images would take longer than the training.
sampled_digits = partial(of_digits, sampled=360)


def vit_few(device: torch.device) -> Problem:
    """A ViT that knows the digits 0 to 4 learns 5 to 9 from a hundred images."""
    weights = weights_before("digits-vit-few")

    def model() -> nn.Module:
        vit = models.ViT(classes=len(SECOND))
        fresh = {f"head.{name}": weight for name, weight in vit.head.state_dict().items()}
        vit.load_state_dict({**weights, **fresh})
        return vit

    return of_digits(
        device, steps=200, title="ViT on few digits", has="pretrained on other digits",
        model=model, batch=10,
        parts=lambda: (of_classes(digits()[0], SECOND, 20), of_classes(digits()[1], SECOND)),
    )  # fmt: skip


CONTEXT = 64
WINDOWS, WINDOWS_BATCH = 96, 32  # of a fixed sample, and of a batch of it
small_gpt = partial(gpt, context=CONTEXT, layers=2, heads=4, width=64)  # it is trained twice


def of_plays(
    device: torch.device, *, steps: int, title: str, has: str, model: Callable[[int], nn.Module],
    kind: str = "", context: int = CONTEXT, batch: int = 16,
) -> Problem:  # fmt: skip
    """A problem on windows of the plays; `model` is made for the number of their characters."""
    text = plays(kind=kind)
    build = partial(model, len(text.vocabulary))

    def fixed(part: torch.Tensor) -> list[Batch]:
        return in_parts(on(device, spread_windows(part, context, WINDOWS)), WINDOWS_BATCH)

    return Problem(
        case="",
        title=title,
        description=(
            f"{parameter_count(build()):,} parameters, {has}; {len(text.train) / 1e6:.1f} M "
            f"characters, batch {batch} x {context}"
        ),
        evaluated_on=f"{WINDOWS} fixed windows",
        model=build,
        batches=partial(random_windows, text.train, context, batch),
        train_sample=fixed(text.train),
        validation_sample=fixed(text.validation),
        plain_steps=steps,
        checkpoints=15,
    )


def continued(device: torch.device) -> Problem:
    """A small GPT that was trained on the comedies goes on to the histories."""
    weights = weights_before("plays-continued")

    def model(characters: int) -> nn.Module:
        network = small_gpt(characters)
        network.load_state_dict(weights)
        return network

    return of_plays(
        device, steps=200, title="GPT, comedies to histories", has="pretrained, dropout",
        model=model, kind="histories",
    )  # fmt: skip


MINILM = "MiniLM-L6"


def of_reviews(device: torch.device, *, every: int, sampled: int, **more: Any) -> Problem:
    """All weights are fine-tuned; one snippet of `every` is used for validation."""
    weights = minilm_weights()
    train, (tokens, labels) = reviews()
    by_length = tokens.ne(0).sum(1).argsort(stable=True)[::every]

    def model() -> nn.Module:
        network = bert(bert_config(MINILM))
        network.load_state_dict(weights)
        return MeanClassifier(network)

    return of_rows(
        device, has="pretrained, dropout", model=model, what="snippets", sampled=sampled, size=128,
        parts=lambda: (train, Batch(tokens[by_length], labels[by_length])), change=trimmed, **more,
    )  # fmt: skip


MAKE: dict[str, Make] = {
    "digits-cnn": partial(
        of_digits, steps=800, title="CNN on digits", has="BatchNorm", model=models.digits_cnn
    ),
    "digits-mlp": partial(
        of_digits, steps=800, title="MLP on digits", has="dropout", model=models.digits_mlp
    ),
    "plays-gpt": partial(
        of_plays, steps=250, title="GPT on plays", has="dropout",
        model=partial(gpt, context=CONTEXT, width=96),
    ),
    "reviews-minilm": partial(
        of_reviews, steps=160, title="MiniLM on reviews", batch=16, sampled=256, every=2,
        checkpoints=6,
    ),
    "digits-vit": partial(
        sampled_digits, steps=400, title="ViT on digits", has="LayerNorm", model=models.ViT
    ),
    "digits-vit-few": vit_few,
    "digits-resnet": partial(
        sampled_digits, steps=600, title="ResNet on digits", has="no norm",
        model=models.PlainResNet, batch=32,
    ),
    "digits-noisy": partial(
        of_digits, steps=2000, title="MLP on digits, wrong labels",
        has=f"{WRONG_LABELS:.0%} of the training labels wrong",
        model=partial(models.digits_mlp, width=128, dropout=0.0), batch=8, log_loss=False,
        parts=lambda: (with_wrong_labels(digits()[0], WRONG_LABELS), digits()[1]),
    ),
    "digits-autoencoder": partial(
        of_digits, steps=1500, title="autoencoder on digits", has="no norm",
        model=models.autoencoder, loss=MEAN_SQUARE,
        parts=lambda: (Batch(part.inputs, part.inputs) for part in digits()),
    ),
    "plays-lstm": partial(
        of_plays, steps=400, title="LSTM on plays", has="no norm", model=models.CharLSTM
    ),
    "plays-continued": continued,
    "plays-long": partial(
        of_plays, steps=3000, title="tiny GPT, long", has="no dropout", context=32, batch=8,
        model=partial(gpt, context=32, layers=2, heads=2, width=32, dropout=0.0),
    ),
    "reviews-minilm-b8": partial(
        of_reviews, steps=60, title="MiniLM on reviews, batch 8", batch=8, sampled=64, every=16,
        checkpoints=5,
    ),
    "tails-regression": partial(
        of_rows, steps=2000, title="regression, heavy tails", has="inputs as they are",
        model=partial(models.mlp, numbers.COLUMNS, 64, 64, 1), parts=numbers.heavy_tails, batch=32,
        what=f"rows of {numbers.COLUMNS}", log_loss=True,
        loss=MEAN_SQUARE,
    ),
    "burgers-pinn": partial(
        of_rows, steps=1500, title="PINN for Burgers' equation", has="tanh", what="points",
        model=partial(models.BurgersNet, numbers.VISCOSITY), parts=numbers.burgers, batch=128,
        log_loss=True, loss=MEAN_SQUARE,
    ),
}  # fmt: skip
# What gave the weights that a problem goes on from.
BEFORE: dict[str, Make] = {
    "digits-vit-few": partial(
        of_digits, steps=300, title="ViT on other digits", has="LayerNorm",
        model=partial(models.ViT, classes=len(FIRST)),
        parts=lambda: (of_classes(part, FIRST) for part in digits()),
    ),
    "plays-continued": partial(
        of_plays, steps=1500, title="GPT on comedies", has="dropout", model=small_gpt,
        kind="comedies",
    ),
}  # fmt: skip
PROBLEMS: dict[str, Callable[..., Problem]] = {
    name: partial(made, name, make) for name, make in MAKE.items()
}
