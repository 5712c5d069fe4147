"""A residual network without any norm: nothing forgives a step that is too long."""

from __future__ import annotations

from torch import Tensor, nn


class PlainResNet(nn.Module):
    """Grey images (batch, 1, 8, 8) -> logits (batch, classes).

    Every branch is scaled by 1 / sqrt(blocks), so that the sum of all of them keeps its size.
    """

    def __init__(self, classes: int = 10, blocks: int = 4, width: int = 24) -> None:
        super().__init__()
        self.scale = blocks**-0.5
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for index, branch in enumerate(self.branches):
            x = x + self.scale * branch(x)
            if index % 2:
                x = self.pool(x)
        return self.head(x.relu().mean((2, 3)))
