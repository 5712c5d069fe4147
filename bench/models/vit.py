"""A small vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929): pre-norm, no dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ViT(nn.Module):
    """Grey images (batch, 1, size, size) -> logits (batch, classes): the mean of all patches."""

    def __init__(
        self,
        classes: int = 10,
        size: int = 8,
        patch: int = 2,
        layers: int = 3,
        heads: int = 4,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu",
                batch_first=True, norm_first=True,
            )
            for _ in range(layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))
