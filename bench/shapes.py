"""The parameters of known models: their shapes alone, for benchmarks that need no model."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shapes:
    title: str
    dtype: torch.dtype
    shapes: list[Shape]

    @property
    def size(self) -> int:
        return sum(map(prod, self.shapes))


def _linear(inputs: int, outputs: int) -> list[Shape]:
    return [(outputs, inputs), (outputs,)]


def _norm(width: int) -> list[Shape]:
    return [(width,), (width,)]


def bert_base() -> Shapes:
    width, inner = 768, 3072
    layer = [*_linear(width, width) * 4, *_norm(width)]
    layer += [*_linear(width, inner), *_linear(inner, width), *_norm(width)]
    embeddings: list[Shape] = [(30522, width), (512, width), (2, width), *_norm(width)]
    shapes = [*embeddings, *layer * 12, *_linear(width, width)]
    return Shapes("BERT-base, fp32", torch.float32, shapes)


def gpt2_xl() -> Shapes:
    width = 1600
    layer: list[Shape] = [*_norm(width), *_linear(width, 3 * width), *_linear(width, width)]
    layer += [*_norm(width), *_linear(width, 4 * width), *_linear(4 * width, width)]
    shapes: list[Shape] = [(50257, width), (1024, width), *layer * 48, *_norm(width)]
    return Shapes("GPT-2 XL, fp32", torch.float32, shapes)


def llama_7b() -> Shapes:
    width, inner, words = 4096, 11008, 32000
    layer: list[Shape] = [*[(width, width)] * 4, *[(inner, width)] * 2, (width, inner)]
    layer += [(width,)] * 2
    shapes: list[Shape] = [(words, width), *layer * 32, (width,), (words, width)]
    return Shapes("Llama 7B, bf16", torch.bfloat16, shapes)
