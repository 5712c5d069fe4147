"""Shakespeare's plays as words: the most frequent ones by number, all others as one."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.sets.fetch import CACHE, fetch
from bench.sets.plays import PLAYS, clean, read_plays

UNKNOWN, END_OF_LINE = "<unk>", "<eos>"


class Words(NamedTuple):
    """Words as integers, the most frequent ones first, and the vocabulary that they index."""

    train: Tensor
    validation: Tensor
    vocabulary: list[str]


def words(size: int = 10_000, cache: Path = CACHE) -> Words:
    """The plays as about 1.1 million words, of a vocabulary of `size`."""
    return encode_words([clean(play) for play in read_plays(fetch(PLAYS, cache))], size)


def encode_words(texts: list[str], size: int, validation_share: float = 0.1) -> Words:
    """Split each text by position, its end for validation; lower case, punctuation by itself."""
    split = [_words_of(text) for text in texts]
    counts = Counter(word for text in split for word in text)
    frequent = [word for word, _ in counts.most_common(size - 1)]
    vocabulary = [UNKNOWN, *frequent]
    index = {word: i for i, word in enumerate(vocabulary)}
    train: list[int] = []
    validation: list[int] = []
    for text in split:
        cut = round(len(text) * (1 - validation_share))
        numbers = [index.get(word, 0) for word in text]
        train += numbers[:cut]
        validation += numbers[cut:]
    return Words(torch.tensor(train), torch.tensor(validation), vocabulary)


def _words_of(text: str) -> list[str]:
    lines = (line for line in text.lower().splitlines() if line)
    return [
        word
        for line in lines
        for word in (*re.findall(r"[a-z'\u2019]+|[^\sa-z]", line), END_OF_LINE)
    ]
