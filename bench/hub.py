"""The papers' own data sets, from the hub, by the usual libraries (`datasets`, `transformers`).

GLUE's SST-2 and MRPC fine-tune a pretrained BERT-base; CIFAR-10 trains a ResNet-34. Both have the
batch sizes of arXiv 2407.20650. A machine that reaches no hub gets a message that says so.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from bench.networks import classifying_bert, resnet
from bench.problems import Make, of_rows
from bench.sets.batches import Batch
from bench.sets.fetch import DataError
from bench.sets.reviews import trimmed
from bench.training import Problem

GLUE_BATCH, GLUE_EPOCHS, GLUE_LONGEST = 32, 5, 256
CIFAR_BATCH, CIFAR_EPOCHS = 128, 100
BERT = "google-bert/bert-base-uncased"
of_hub = partial(of_rows, sampled=1024, checkpoints=20)


def _load(*name: str) -> Any:
    """A data set of the hub; `DataError` where it, or a library, cannot be had."""
    try:
        from datasets import load_dataset

        return load_dataset(*name)
    except ImportError as missing:
        raise DataError(f"{'/'.join(name)}: {missing}. pip install datasets") from None
    except Exception as error:  # as many as there are ways not to reach a hub
        raise DataError(
            f"{'/'.join(name)}: the hub could not be reached ({type(error).__name__}: {error}). "
            "The cases that need no hub are the default."
        ) from None


def _pretrained() -> tuple[Any, Any]:
    """BERT's tokenizer, which pads with 0, and BERT."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(BERT)
    return tokenizer, transformers.BertModel.from_pretrained(BERT)


def glue(title: str, columns: tuple[str, ...], case: str, device: torch.device) -> Problem:
    splits = _load("nyu-mll/glue", case)
    tokenizer, pretrained = _pretrained()

    def batch_of(split: Any) -> Batch:
        rows = [list(split[column]) for column in columns]
        tokens = tokenizer(*rows, truncation=True, max_length=GLUE_LONGEST, padding="max_length")
        return Batch(torch.tensor(tokens["input_ids"]), torch.tensor(list(split["label"])))

    def model() -> nn.Module:
        network = classifying_bert(pretrained.config)
        network.model.bert.load_state_dict(pretrained.state_dict())
        return network

    parts = batch_of(splits["train"]), batch_of(splits["validation"])
    return of_hub(
        GLUE_EPOCHS * (len(parts[0].targets) // GLUE_BATCH), title, "pretrained, dropout", model,
        case, device, what="rows", parts=lambda: parts, batch=GLUE_BATCH, size=128, change=trimmed,
    )  # fmt: skip


def cifar10(case: str, device: torch.device) -> Problem:
    """A ResNet-34; random crops and flips, as everybody does it."""
    splits = _load("uoft-cs/cifar10")
    parts = _images(splits["train"]), _images(splits["test"])
    problem = of_hub(
        CIFAR_EPOCHS * (len(parts[0].targets) // CIFAR_BATCH), "ResNet-34 on CIFAR-10", "BatchNorm",
        lambda: resnet(34, 10, cifar=True), case, device, log_loss=True, parts=lambda: parts,
        batch=CIFAR_BATCH, size=500,
    )  # fmt: skip
    return replace(
        problem,
        batches=lambda generator: map(partial(augmented, generator), problem.batches(generator)),
    )


def _images(split: Any) -> Batch:
    """As fp32 with the data set's mean and deviation taken out."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in split["img"]])
    mean, deviation = torch.tensor([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]])
    images = ((torch.tensor(pixels).float() / 255 - mean) / deviation).permute(0, 3, 1, 2)
    return Batch(images, torch.tensor(list(split["label"])))


def augmented(generator: torch.Generator, batch: Batch, margin: int = 4) -> Batch:
    """Every image shifted by up to `margin` pixels, and every second one flipped."""
    count, _, height, width = batch.inputs.shape
    padded = nn.functional.pad(batch.inputs, [margin] * 4)
    top, left = torch.randint(2 * margin + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    images = padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return Batch(images, batch.targets)


HUB: dict[str, Make] = {
    "sst2": partial(glue, "BERT-base on SST-2", ("sentence",)),
    "mrpc": partial(glue, "BERT-base on MRPC", ("sentence1", "sentence2")),
    "cifar10": cifar10,
}
