"""Llama (Touvron et al. 2023, arXiv 2302.13971; Llama 3.2's sizes, arXiv 2407.21783)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class LlamaSize:
    vocabulary: int
    width: int
    layers: int
    heads: int
    groups: int  # of heads that share keys and values
    inner: int
    theta: float = 500_000.0


LLAMA_1B = LlamaSize(128_256, 2048, 16, 32, 8, 8192)
TINY = LlamaSize(8192, 256, 4, 8, 2, 1024)


class Llama(nn.Module):
    """Tokens (batch, time) -> logits (batch, time, vocabulary); the head is tied."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.size = size
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width, eps=1e-5)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        turn = rotations(self.size, tokens.shape[1], tokens.device)
        for layer in self.layers:
            x = layer(x, turn)
        return F.linear(self.norm(x), self.tokens.weight)


class Block(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        shared = size.groups * (size.width // size.heads)
        self.size = size
        self.norm_attention = nn.RMSNorm(size.width, eps=1e-5)
        self.query = nn.Linear(size.width, size.width, bias=False)
        self.key = nn.Linear(size.width, shared, bias=False)
        self.value = nn.Linear(size.width, shared, bias=False)
        self.project = nn.Linear(size.width, size.width, bias=False)
        self.norm_mlp = nn.RMSNorm(size.width, eps=1e-5)
        self.gate = nn.Linear(size.width, size.inner, bias=False)
        self.grow = nn.Linear(size.width, size.inner, bias=False)
        self.shrink = nn.Linear(size.inner, size.width, bias=False)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self._attention(self.norm_attention(x), turn)
        h = self.norm_mlp(x)
        return x + self.shrink(F.silu(self.gate(h)) * self.grow(h))

    def _attention(self, x: Tensor, turn: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (-1, self.size.width // self.size.heads)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        query, key = rotate(query, turn), rotate(key, turn)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.project(mixed.transpose(1, 2).flatten(2))


def rotations(size: LlamaSize, time: int, device: torch.device) -> Tensor:
    """Cosines and sines (2, time, width of a head / 2) of the rotary positions, in fp32."""
    half = size.width // size.heads // 2
    speeds = size.theta ** -(torch.arange(half, device=device) / half)
    angles = torch.arange(time, device=device)[:, None] * speeds
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the pairs (i, i + half) of every head by its position's angle."""
    cos, sin = turn.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
