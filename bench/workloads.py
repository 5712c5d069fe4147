"""Whole training steps to be timed: real architectures, and their small sisters for a CPU.

To add one, write a function that returns its `Workload`, and name it in `ON_CPU` or `ON_GPU`.  The
data can be learnt, so that searches find what they find in training: plays, reviews with a word
in seven masked, and images with their class's pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.models import parameter_count
from bench.models.bert import BASE, PADDING, SMALL, Bert, BertForMaskedTokens, BertSize
from bench.models.gpt import GPT
from bench.models.llama import LLAMA_1B, TINY, Llama, LlamaSize
from bench.models.resnet import resnet18, resnet50
from bench.sets.batches import Batch, random_windows
from bench.sets.plays import plays
from bench.sets.reviews import reviews

IGNORED = -100  # the target of a token that is not to be predicted: cross_entropy's own
MASK = 103  # BERT's token
CLASSES = 1000
GPT2_VOCABULARY = 50257


@dataclass(frozen=True)
class Workload:
    case: str
    title: str
    model: Callable[[], nn.Module]
    batches: Callable[[torch.Generator], Iterator[Batch]]
    size: str  # of a batch, in words

    def describe(self) -> str:
        with torch.device("meta"):
            count = parameter_count(self.model())
        return f"{self.title}, {count / 1e6:,.1f} M parameters, batch {self.size}"


def _images(title: str, model: Callable[[], nn.Module], batch: int, side: int) -> Workload:
    def batches(generator: torch.Generator) -> Iterator[Batch]:
        patterns = torch.randn(CLASSES, 3, 1, 1, generator=generator)
        while True:
            labels = torch.randint(CLASSES, (batch,), generator=generator)
            noise = torch.randn(batch, 3, side, side, generator=generator)
            yield Batch(noise + patterns[labels], labels)

    return Workload(_case(title), title, model, batches, f"{batch} x 3 x {side} x {side}")


def _masked(title: str, size: BertSize, batch: int, time: int) -> Workload:
    def batches(generator: torch.Generator) -> Iterator[Batch]:
        (rows, _), _ = reviews()
        text = rows[rows != PADDING]
        for tokens, _ in random_windows(text, time, batch, generator):
            masked = torch.rand(tokens.shape, generator=generator) < 0.15
            targets = torch.where(masked, tokens, IGNORED)
            yield Batch(torch.where(masked, MASK, tokens), targets)

    return Workload(
        _case(title), title, lambda: BertForMaskedTokens(Bert(size)), batches, f"{batch} x {time}"
    )


def _text(title: str, model: Callable[[], nn.Module], batch: int, time: int) -> Workload:
    def batches(generator: torch.Generator) -> Iterator[Batch]:
        return random_windows(plays().train, time, batch, generator)

    return Workload(_case(title), title, model, batches, f"{batch} x {time}")


def _gpt(title: str, layers: int, heads: int, width: int, batch: int, time: int) -> Workload:
    return _text(title, lambda: GPT(GPT2_VOCABULARY, 1024, layers, heads, width), batch, time)


def _llama(title: str, size: LlamaSize, batch: int, time: int) -> Workload:
    return _text(title, lambda: Llama(size), batch, time)


def _case(title: str) -> str:
    return title.lower().replace(" ", "-").replace(",", "")


ON_CPU: tuple[Callable[[], Workload], ...] = (
    lambda: _images("ResNet-18", resnet18, batch=8, side=64),
    lambda: _masked("BERT-small", SMALL, batch=2, time=64),
    lambda: _gpt("GPT-2, 6 layers of 384", 6, 6, 384, batch=2, time=64),
    lambda: _llama("Llama, 4 layers of 256", TINY, batch=2, time=64),
)
REAL_SIZES: tuple[Callable[[], Workload], ...] = (  # with batches that a CPU can do
    lambda: _images("ResNet-50", resnet50, batch=4, side=224),
    lambda: _masked("BERT-base", BASE, batch=2, time=64),
    lambda: _gpt("GPT-2 small", 12, 12, 768, batch=1, time=64),
)
ON_GPU: tuple[Callable[[], Workload], ...] = (
    lambda: _images("ResNet-50", resnet50, batch=64, side=224),
    lambda: _masked("BERT-base", BASE, batch=32, time=128),
    lambda: _gpt("GPT-2 small", 12, 12, 768, batch=8, time=1024),
    lambda: _gpt("GPT-2 XL", 48, 25, 1600, batch=2, time=1024),
    lambda: _llama("Llama 1B", LLAMA_1B, batch=2, time=1024),
)


def loss_of(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """Cross entropy in fp32; on a GPU the forward runs in bf16 autocast."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(batch.inputs)
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), batch.targets.flatten())
