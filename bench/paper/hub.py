"""The papers' own data and models, where a hub can be reached: BERT on GLUE, a ResNet on CIFAR.

Data and weights come from huggingface.co and stay in that hub's own cache (`HF_HOME`): a machine
without network can train from a copy of it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from bench import models
from bench.networks import PADDING, Logits
from bench.problems import Make, of_rows
from bench.sets.batches import Batch, shuffled
from bench.sets.fetch import DataError
from bench.training import Problem

BERT = "bert-base-uncased"
LONGEST = 256  # tokens of a row that are kept
SAMPLED = 1024  # training rows that are evaluated
BORDER = 4  # pixels that a crop can move an image by, each way


def from_hub(load: Callable[..., Any], *which: str, **how: Any) -> Any:
    """What `load` returns; raises `DataError` where the hub, or its library, does not give it."""
    try:
        return load(*which, **how)
    except Exception as error:  # of files, HTTP or the hub: there is no base of all of them
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        to_do = "connect and run again, or copy the hub's cache (HF_HOME) from where it is"
        if isinstance(error, ImportError):
            to_do = "pip install -e '.[bench,hub]'"
        what = f"{' '.join(which)} cannot be had from huggingface.co"
        raise DataError(f"{what} ({said}): {to_do}") from error


def load_dataset(*which: str, split: str) -> Any:
    """A part of a data set; a slice of it is a dict of columns."""
    import datasets

    return datasets.load_dataset(*which, split=split)


# --- GLUE -----------------------------------------------------------------------------------------


class PairLogits(Logits):
    """Tokens and their types (batch, 2, time) -> logits (batch, classes)."""

    def forward(self, inputs: Tensor) -> Tensor:
        tokens, types = inputs.unbind(1)
        return self.model(tokens, attention_mask=tokens != PADDING, token_type_ids=types).logits


def encoded(tokenizer: Any, rows: Any, columns: tuple[str, ...], chunk: int = 1000) -> Batch:
    """Tokens and their types (rows, 2, LONGEST), and labels; two columns make pairs."""
    inputs: list[Tensor] = []
    labels: list[int] = []
    for start in range(0, len(rows), chunk):  # lists of all tokens would take many times the memory
        part = rows[start : start + chunk]
        found = tokenizer(
            *(part[column] for column in columns), truncation=True, max_length=LONGEST,
            padding="max_length", return_token_type_ids=True, return_tensors="pt",
        )  # fmt: skip
        both = torch.stack((found["input_ids"], found["token_type_ids"]), 1)
        inputs.append(both.to(torch.int16))  # the vocabulary has 30,522 tokens
        labels += part["label"]
    return Batch(torch.cat(inputs), torch.tensor(labels))


def trimmed_pairs(batch: Batch) -> Batch:
    """Without the columns that hold nothing but padding."""
    longest = int((batch.inputs[:, 0] != PADDING).sum(1).max())
    return Batch(batch.inputs[..., :longest].long(), batch.targets)


def of_glue(
    task: str, columns: tuple[str, ...], title: str, case: str, device: torch.device, *,
    classes: int = 2, validation: str = "validation", epochs: int = 5, batch: int = 32,
) -> Problem:  # fmt: skip
    """All weights of BERT are fine-tuned, with a new head on the state of [CLS]."""
    get = partial(from_hub, load_dataset, "nyu-mll/glue", task)
    parts = [get(split=split) for split in ("train", validation)]
    tokenizer = from_hub(transformers.AutoTokenizer.from_pretrained, BERT)
    config = from_hub(transformers.AutoConfig.from_pretrained, BERT, num_labels=classes)
    # Read once: no run needs the hub again.
    known = from_hub(transformers.AutoModel.from_pretrained, BERT, dtype=torch.float32).state_dict()

    def model() -> nn.Module:
        network = transformers.AutoModelForSequenceClassification.from_config(config)
        network.base_model.load_state_dict(known)
        return PairLogits(network)

    return of_rows(
        epochs * (len(parts[0]) // batch), title, "pretrained, dropout", model, case, device,
        parts=lambda: [encoded(tokenizer, part, columns) for part in parts], batch=batch,
        what="sentences" if len(columns) == 1 else "pairs of sentences", sampled=SAMPLED, size=128,
        change=trimmed_pairs, checkpoints=epochs,
    )  # fmt: skip


# --- CIFAR ----------------------------------------------------------------------------------------


def cifar(name: str, column: str) -> tuple[Batch, Batch]:
    """Images (rows, 3, 32, 32) and labels, as (training, validation).

    Each channel has the mean 0 and the variance 1 over all training images.
    """

    def part(split: str) -> Batch:
        rows = from_hub(load_dataset, name, split=split)[:]
        images = torch.from_numpy(np.stack(rows["img"])).movedim(-1, 1)
        return Batch(images.float().contiguous(), torch.tensor(rows[column]))

    train, validation = part("train"), part("test")
    deviation, mean = torch.std_mean(train.inputs, (0, 2, 3), keepdim=True)
    for images in (train.inputs, validation.inputs):
        images.sub_(mean).div_(deviation)
    return train, validation


def augmented(batch: Batch, generator: torch.Generator) -> Batch:
    """Every image moved by up to BORDER pixels each way, and half of them mirrored."""
    count, _, height, width = batch.inputs.shape
    padded = nn.functional.pad(batch.inputs, [BORDER] * 4)  # with 0, the mean
    top, left = torch.randint(2 * BORDER + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(2, (count, 1), generator=generator) == 1
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    images = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None]]
    return Batch(images.movedim(-1, 1).contiguous(), batch.targets)


def of_cifar(
    name: str, column: str, classes: int, title: str, case: str, device: torch.device, *,
    epochs: int = 100, batch: int = 128, **size: Any,
) -> Problem:  # fmt: skip
    """A ResNet-34 for small images, or one of another `size`."""
    train, validation = cifar(name, column)
    size = {"width": 64, "blocks": (3, 4, 6, 3), **size}
    problem = of_rows(
        epochs * (len(train.targets) // batch), title, "BatchNorm, images moved and mirrored",
        partial(models.ResNet, channels=3, classes=classes, **size), case, device,
        parts=lambda: (train, validation), batch=batch, sampled=SAMPLED, size=512, checkpoints=20,
        log_loss=True,
    )  # fmt: skip
    # Order and moves are drawn from one generator: every optimizer sees the same images.
    return replace(problem, batches=lambda generator: (
        augmented(one, generator) for one in shuffled(train, batch, generator)
    ))  # fmt: skip


HUB: dict[str, Make] = {
    "glue-mrpc": partial(of_glue, "mrpc", ("sentence1", "sentence2"), "BERT on MRPC"),
    "glue-sst2": partial(of_glue, "sst2", ("sentence",), "BERT on SST-2"),
    "glue-qnli": partial(of_glue, "qnli", ("question", "sentence"), "BERT on QNLI"),
    "glue-mnli": partial(of_glue, "mnli", ("premise", "hypothesis"), "BERT on MNLI", classes=3,
                         validation="validation_matched"),
    "cifar10": partial(of_cifar, "uoft-cs/cifar10", "label", 10, "ResNet-34 on CIFAR-10"),
    "cifar100": partial(of_cifar, "uoft-cs/cifar100", "fine_label", 100, "ResNet-34 on CIFAR-100"),
}  # fmt: skip
