"""The papers' own data sets, from the hub, by the usual libraries (`datasets`, `transformers`).

GLUE's SST-2 and MRPC fine-tune a pretrained BERT-base; CIFAR-10 trains a ResNet-34.  Both have the
batch sizes of arXiv 2407.20650.  A machine that reaches no hub gets a message that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.models import parameter_count
from bench.models.bert import BASE, PADDING, Bert, BertClassifier
from bench.models.resnet import resnet34
from bench.sets.batches import Batch, in_parts, on, shuffled
from bench.sets.fetch import DataError
from bench.sets.reviews import trimmed
from bench.training import Problem

GLUE_BATCH, GLUE_EPOCHS, GLUE_LONGEST = 32, 5, 256
CIFAR_BATCH, CIFAR_EPOCHS = 128, 100
SAMPLE = 1024  # rows of the training set that are evaluated
BERT = "google-bert/bert-base-uncased"


def _load(*name: str) -> Any:
    """A data set of the hub; `DataError` where it, or a library, cannot be had."""
    try:
        from datasets import load_dataset

        return load_dataset(*name)
    except ImportError as missing:
        raise DataError(f"{'/'.join(name)}: {missing}. pip install datasets transformers") from None
    except Exception as error:  # as many as there are ways not to reach a hub
        raise DataError(
            f"{'/'.join(name)}: the hub could not be reached ({type(error).__name__}: {error}). "
            "The cases that need no hub are the default."
        ) from None


def sst2(device: torch.device, plain_steps: int | None = None) -> Problem:
    return _glue(device, plain_steps, "sst2", "BERT-base on SST-2", ("sentence",))


def mrpc(device: torch.device, plain_steps: int | None = None) -> Problem:
    return _glue(device, plain_steps, "mrpc", "BERT-base on MRPC", ("sentence1", "sentence2"))


def _glue(
    device: torch.device, plain_steps: int | None, task: str, title: str, columns: tuple[str, ...]
) -> Problem:
    splits = _load("nyu-mll/glue", task)
    tokenizer, weights = _pretrained()

    def batch_of(split: Any) -> Batch:
        rows = [list(split[column]) for column in columns]
        tokens = tokenizer(*rows, truncation=True, max_length=GLUE_LONGEST, padding="max_length")
        return Batch(torch.tensor(tokens["input_ids"]), torch.tensor(list(split["label"])))

    train, validation = batch_of(splits["train"]), batch_of(splits["validation"])
    steps = plain_steps or GLUE_EPOCHS * (len(train.targets) // GLUE_BATCH)

    def model() -> nn.Module:
        bert = Bert(BASE)
        bert.load_state_dict(weights)
        return BertClassifier(bert, classes=2)

    def batches(generator: torch.Generator) -> Iterator[Batch]:
        return map(trimmed, shuffled(train, GLUE_BATCH, generator))

    def fixed(part: Batch) -> list[Batch]:
        return [on(device, trimmed(batch)) for batch in in_parts(part, 128)]

    return Problem(
        case=task,
        title=title,
        description=(
            f"{parameter_count(model()):,} parameters, pretrained, dropout; "
            f"{len(train.targets):,} rows, batch {GLUE_BATCH}"
        ),
        evaluated_on=f"{SAMPLE} rows, and all of the validation set",
        model=model,
        batches=batches,
        train_sample=fixed(Batch(train.inputs[:SAMPLE], train.targets[:SAMPLE])),
        validation_sample=fixed(validation),
        plain_steps=steps,
        checkpoints=20,
    )


def _pretrained() -> tuple[Any, dict[str, Tensor]]:
    """BERT's tokenizer, and its weights under the names that our own BERT has, too."""
    try:
        from transformers import AutoTokenizer, BertModel
    except ImportError as missing:
        raise DataError(f"{BERT}: {missing}. pip install datasets transformers") from None
    model = BertModel.from_pretrained(BERT)
    weights = {name: w for name, w in model.state_dict().items() if w.is_floating_point()}
    tokenizer = AutoTokenizer.from_pretrained(BERT)
    assert tokenizer.pad_token_id == PADDING
    return tokenizer, weights


def cifar10(device: torch.device, plain_steps: int | None = None) -> Problem:
    """A ResNet-34; random crops and flips, as everybody does it."""
    splits = _load("uoft-cs/cifar10")
    train, validation = (_images(splits[name]) for name in ("train", "test"))
    steps = plain_steps or CIFAR_EPOCHS * (len(train.targets) // CIFAR_BATCH)

    def batches(generator: torch.Generator) -> Iterator[Batch]:
        for images, labels in shuffled(train, CIFAR_BATCH, generator):
            yield Batch(augmented(images, generator), labels)

    def fixed(part: Batch) -> list[Batch]:
        return [on(device, batch) for batch in in_parts(part, 500)]

    return Problem(
        case="cifar10",
        title="ResNet-34 on CIFAR-10",
        description=(
            f"{parameter_count(resnet34(10, cifar=True)):,} parameters, BatchNorm; "
            f"{len(train.targets):,} images, batch {CIFAR_BATCH}"
        ),
        evaluated_on=f"{SAMPLE} images, and all of the test set",
        model=lambda: resnet34(10, cifar=True),
        batches=batches,
        train_sample=fixed(Batch(train.inputs[:SAMPLE], train.targets[:SAMPLE])),
        validation_sample=fixed(validation),
        plain_steps=steps,
        checkpoints=20,
        log_loss=True,
    )


def _images(split: Any) -> Batch:
    """As fp32 with the data set's mean and deviation taken out."""
    import numpy as np

    pixels = np.stack([np.asarray(image.convert("RGB")) for image in split["img"]])
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
    return Batch(images, torch.tensor(list(split["label"])))


def augmented(images: Tensor, generator: torch.Generator, margin: int = 4) -> Tensor:
    """Every image shifted by up to `margin` pixels, and every second one flipped."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, [margin] * 4)
    top, left = torch.randint(2 * margin + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


HUB: dict[str, Callable[..., Problem]] = {"sst2": sst2, "mrpc": mrpc, "cifar10": cifar10}
