"""scikit-learn's handwritten digits, which its package carries."""

from __future__ import annotations

import torch

from bench.sets.batches import Batch


def digits(validation_share: float = 0.2) -> tuple[Batch, Batch]:
    """1797 images of 8x8 grey levels, as (training, validation), the same each time.

    The split is stratified: every digit has the same share in both parts.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        torch.tensor(images / 16.0, dtype=torch.float32).view(-1, 1, 8, 8),
        torch.tensor(labels),
        test_size=validation_share,
        stratify=labels,
        random_state=0,
    )
    train_images, validation_images, train_labels, validation_labels = parts
    return Batch(train_images, train_labels), Batch(validation_images, validation_labels)


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
    rows = [(data.targets == label).nonzero()[:each, 0] for label in classes]
    chosen = torch.cat(rows)
    return Batch(data.inputs[chosen], data.targets[chosen] - classes.start)
