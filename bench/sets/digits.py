"""scikit-learn's handwritten digits, which its package carries."""

from __future__ import annotations

import torch

from bench.sets.batches import Batch, split


def digits() -> tuple[Batch, Batch]:
    """1797 images of 8x8 grey levels, as (training, validation), the same each time."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
    return split(Batch(inputs, torch.tensor(labels)), 0.2)


def with_wrong_labels(data: Batch, share: float, classes: int = 10, seed: int = 0) -> Batch:
    """`share` of the labels, chosen once, each replaced by one of the other classes."""
    generator = torch.Generator().manual_seed(seed)
    count = len(data.targets)
    wrong = torch.randperm(count, generator=generator)[: round(share * count)]
    targets = data.targets.clone()
    targets[wrong] += torch.randint(1, classes, (len(wrong),), generator=generator)
    return Batch(data.inputs, targets % classes)


def of_classes(data: Batch, classes: range, each: int | None = None) -> Batch:
    """Only these classes, numbered from 0; the first `each` images of every one, or all."""
    chosen = torch.cat([(data.targets == label).nonzero()[:each, 0] for label in classes])
    return Batch(data.inputs[chosen], data.targets[chosen] - classes.start)
