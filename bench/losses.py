"""Losses of a batch's outputs: what is minimised, its unit, and whether the targets are classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Loss:
    """A mean over every prediction, for `(outputs, targets)`."""

    of: Callable[[Tensor, Tensor], Tensor]
    unit: str
    classes: bool = False  # the outputs are logits: accuracy can be counted

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.of(outputs, targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over every prediction: one per image, or one per character."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


CROSS_ENTROPY = Loss(cross_entropy, "nats", classes=True)
MEAN_SQUARE = Loss(F.mse_loss, "mean square")
