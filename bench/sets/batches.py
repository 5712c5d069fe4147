"""Batches, and how they are drawn from a data set: always from a generator of their own."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    inputs: Tensor
    targets: Tensor


def on(device: torch.device, batch: Batch) -> Batch:
    return Batch(batch.inputs.to(device), batch.targets.to(device))


def shuffled(data: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches of `size` for ever, reshuffled every epoch; the incomplete last one is left out."""
    count = len(data.targets)
    while True:
        order = torch.randperm(count, generator=generator).to(data.targets.device)
        for start in range(0, count - size + 1, size):
            chosen = order[start : start + size]
            yield Batch(data.inputs[chosen], data.targets[chosen])


def split(data: Batch, validation_share: float) -> tuple[Batch, Batch]:
    """(training, validation), the same each time: every class has the same share in both."""
    from sklearn.model_selection import train_test_split

    how = {"test_size": validation_share, "stratify": data.targets, "random_state": 0}
    inputs, checked_inputs, targets, checked_targets = train_test_split(*data, **how)
    return Batch(inputs, targets), Batch(checked_inputs, checked_targets)


def in_parts(data: Batch, size: int) -> list[Batch]:
    """All of it, in its order, in batches of at most `size`: for evaluation."""
    return list(map(Batch, data.inputs.split(size), data.targets.split(size)))


def windows(text: Tensor, length: int, starts: Tensor) -> Batch:
    """Rows of `length` tokens from `starts`; the targets are the tokens that follow."""
    rows = text[starts[:, None] + torch.arange(length + 1)]
    return Batch(rows[:, :-1], rows[:, 1:])


def random_windows(
    text: Tensor, length: int, size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Batches of `size` windows for ever, at random places."""
    while True:
        yield windows(text, length, torch.randint(len(text) - length, (size,), generator=generator))


def spread_windows(text: Tensor, length: int, size: int) -> Batch:
    """One batch of `size` windows, evenly spread over the text: always the same, for evaluation."""
    starts = torch.linspace(0, len(text) - length - 1, size, dtype=torch.float64).long()
    return windows(text, length, starts)
