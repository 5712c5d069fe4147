"""Problems on scikit-learn's handwritten digits: images of 8x8 grey levels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.losses import MEAN_SQUARE
from bench.models import parameter_count
from bench.models.plain_resnet import PlainResNet
from bench.models.small import Autoencoder, DigitsCNN, DigitsMLP
from bench.models.vit import ViT
from bench.problems.common import checkpoints
from bench.sets.batches import Batch, on, shuffled
from bench.sets.digits import digits, of_classes, with_wrong_labels
from bench.sets.fetch import CACHE
from bench.sets.pretrained import Recipe, pretrained
from bench.training import Problem

DIGITS_STEPS = 800  # 36 epochs
DIGITS_BATCH = 64
SAMPLE = 360  # training images that are evaluated, where all would take longer than the training
VIT_STEPS = 400
RESNET_STEPS, RESNET_BATCH = 600, 32
NOISY_STEPS, NOISY_BATCH, WRONG_LABELS = 2000, 8, 0.3
AUTOENCODER_STEPS = 1500
FEW_STEPS, FEW_BATCH, FEW_IMAGES = 200, 10, 20  # images of each class
FIRST, SECOND = range(0, 5), range(5, 10)  # classes: to pre-train on, and to go on with


def digits_cnn(device: torch.device, plain_steps: int = DIGITS_STEPS) -> Problem:
    """A CNN with BatchNorm."""
    return _digits(device, plain_steps, "cnn", "CNN on digits", "BatchNorm", DigitsCNN)


def digits_mlp(device: torch.device, plain_steps: int = DIGITS_STEPS) -> Problem:
    """An MLP with dropout."""
    return _digits(device, plain_steps, "mlp", "MLP on digits", "dropout", DigitsMLP)


def digits_vit(device: torch.device, plain_steps: int = VIT_STEPS) -> Problem:
    """A vision transformer without dropout."""
    title = "ViT on digits"
    return _digits(device, plain_steps, "vit", title, "LayerNorm", ViT, sampled=SAMPLE)


def digits_resnet(device: torch.device, plain_steps: int = RESNET_STEPS) -> Problem:
    """A ResNet without any norm."""
    return _digits(
        device,
        plain_steps,
        "resnet",
        "ResNet on digits",
        "no norm",
        PlainResNet,
        batch=RESNET_BATCH,
        sampled=SAMPLE,
    )


def digits_noisy(device: torch.device, plain_steps: int = NOISY_STEPS) -> Problem:
    """Three labels in ten are wrong, the same ones in every run; those of validation are right."""
    train, validation = digits()
    return _digits(
        device,
        plain_steps,
        "noisy",
        "MLP on digits, wrong labels",
        f"{WRONG_LABELS:.0%} of the training labels wrong",
        partial(DigitsMLP, width=128, dropout=0.0),
        batch=NOISY_BATCH,
        parts=(with_wrong_labels(train, WRONG_LABELS), validation),
        log_loss=False,
    )


def digits_autoencoder(device: torch.device, plain_steps: int = AUTOENCODER_STEPS) -> Problem:
    """Images through eight numbers and back: the loss is the mean square of what is lost."""
    train, validation = (Batch(part.inputs, part.inputs) for part in digits())
    return _digits(
        device,
        plain_steps,
        "autoencoder",
        "autoencoder on digits",
        "no norm",
        Autoencoder,
        parts=(train, validation),
        loss=MEAN_SQUARE,
    )


def few_recipe(steps: int = 300) -> Recipe:
    """The vision transformer on the digits 0 to 4."""
    train = of_classes(digits()[0], FIRST)
    return Recipe(
        name="digits-vit",
        data="the digits 0 to 4 of scikit-learn's training part",
        model=partial(ViT, classes=len(FIRST)),
        settings="the defaults",
        batches=lambda generator: shuffled(train, DIGITS_BATCH, generator),
        steps=steps,
    )


def digits_vit_few(
    device: torch.device,
    plain_steps: int = FEW_STEPS,
    recipe: Callable[[], Recipe] = few_recipe,
    cache: Path = CACHE,
) -> Problem:
    """A ViT that knows the digits 0 to 4 learns 5 to 9 from a hundred images."""
    train, validation = digits()
    weights = pretrained(recipe(), cache)

    def model() -> nn.Module:
        vit = ViT(classes=len(SECOND))
        fresh = {name: w for name, w in vit.state_dict().items() if name.startswith("head.")}
        vit.load_state_dict({**weights, **fresh})
        return vit

    return _digits(
        device,
        plain_steps,
        "vit-few",
        "ViT on few digits",
        "pretrained on other digits",
        model,
        batch=FEW_BATCH,
        parts=(of_classes(train, SECOND, FEW_IMAGES), of_classes(validation, SECOND)),
    )


def _digits(
    device: torch.device,
    plain_steps: int,
    case: str,
    title: str,
    has: str,
    model: Callable[[], nn.Module],
    *,
    batch: int = DIGITS_BATCH,
    parts: tuple[Batch, Batch] | None = None,
    sampled: int | None = None,
    log_loss: bool = True,
    **more: Any,
) -> Problem:
    train, validation = (on(device, part) for part in parts or digits())
    return Problem(
        case=f"digits-{case}",
        title=title,
        description=(
            f"{parameter_count(model()):,} parameters, {has}; "
            f"{len(train.targets):,} images, batch {batch}"
        ),
        evaluated_on=f"{sampled} training and all validation images"
        if sampled
        else "all its images",
        model=model,
        batches=lambda generator: shuffled(train, batch, generator),
        train_sample=[Batch(train.inputs[:sampled], train.targets[:sampled])],
        validation_sample=[validation],
        plain_steps=plain_steps,
        checkpoints=checkpoints(plain_steps),
        log_loss=log_loss,
        **more,
    )
