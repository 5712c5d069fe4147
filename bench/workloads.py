"""Whole training steps to be timed: real architectures, and their small sisters for a CPU.

To add one, name a `Workload` in `ON_CPU` or `ON_GPU`. The data can be learnt, so that searches find
what they find in training: plays, reviews with a word in seven masked, and images with their
class's pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.networks import (
    GPT2_VOCABULARY,
    PADDING,
    bert_config,
    gpt,
    llama,
    masked_bert,
    parameter_count,
    resnet,
)
from bench.sets.batches import Batch, random_windows
from bench.sets.reviews import reviews
from bench.sets.text import plays

IGNORED = -100  # the target of a token that is not to be predicted: cross_entropy's own
MASK = 103  # BERT's token
CLASSES = 1000


class Workload(NamedTuple):
    title: str
    model: Callable[[], nn.Module]
    draw: Callable[[int, int, torch.Generator], Iterator[Batch]]  # of a batch, and of its rows
    batch: int
    length: int  # of a row, in tokens, or of an image's side

    @property
    def case(self) -> str:
        return self.title.lower().replace(" ", "-").replace(",", "")

    def batches(self, generator: torch.Generator) -> Iterator[Batch]:
        return self.draw(self.batch, self.length, generator)

    def describe(self) -> str:
        with torch.device("meta"):
            count = parameter_count(self.model())
        side = f"3 x {self.length} x {self.length}" if self.draw is images else self.length
        return f"{self.title}, {count / 1e6:,.1f} M parameters, batch {self.batch} x {side}"


def images(batch: int, side: int, generator: torch.Generator) -> Iterator[Batch]:
    patterns = torch.randn(CLASSES, 3, 1, 1, generator=generator)
    while True:
        labels = torch.randint(CLASSES, (batch,), generator=generator)
        noise = torch.randn(batch, 3, side, side, generator=generator)
        yield Batch(noise + patterns[labels], labels)


def masked(batch: int, time: int, generator: torch.Generator) -> Iterator[Batch]:
    (rows, _), _ = reviews()
    for tokens, _ in random_windows(rows[rows != PADDING], time, batch, generator):
        chosen = torch.rand(tokens.shape, generator=generator) < 0.15
        yield Batch(torch.where(chosen, MASK, tokens), torch.where(chosen, tokens, IGNORED))


def text(batch: int, time: int, generator: torch.Generator) -> Iterator[Batch]:
    return random_windows(plays().train, time, batch, generator)


def bert(size: str) -> nn.Module:
    return masked_bert(bert_config(size))


gpt2 = partial(gpt, GPT2_VOCABULARY, 1024)

ON_CPU = (
    Workload("ResNet-18", partial(resnet, 18), images, 8, 64),
    Workload("BERT-small", partial(bert, "small"), masked, 2, 64),
    Workload("GPT-2, 6 layers of 384", partial(gpt2, 6, 6, 384), text, 2, 64),
    Workload("Llama, 4 layers of 256", partial(llama, "tiny"), text, 2, 64),
)
REAL_SIZES = (  # with batches that a CPU can do
    Workload("ResNet-50", partial(resnet, 50), images, 4, 224),
    Workload("BERT-base", partial(bert, "base"), masked, 2, 64),
    Workload("GPT-2 small", partial(gpt2, 12, 12, 768), text, 1, 64),
)
ON_GPU = (
    Workload("ResNet-50", partial(resnet, 50), images, 64, 224),
    Workload("BERT-base", partial(bert, "base"), masked, 32, 128),
    Workload("GPT-2 small", partial(gpt2, 12, 12, 768), text, 8, 1024),
    Workload("GPT-2 XL", partial(gpt2, 48, 25, 1600), text, 2, 1024),
    Workload("Llama 1B", partial(llama, "1B"), text, 2, 1024),
)


def loss_of(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """Cross entropy in fp32; on a GPU the forward runs in bf16 autocast."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(batch.inputs)
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), batch.targets.flatten())
