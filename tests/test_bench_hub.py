"""Data that others prepare: review snippets from an archive, and what a hub has."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from bench import hub
from bench.sets.batches import Batch
from bench.sets.fetch import DataError
from bench.sets.reviews import read_snippets, trimmed

CPU = torch.device("cpu")


def test_snippets_are_read_from_the_archive(tmp_path):
    import tarfile

    def add(archive, name, content):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    lines = b"1\t2.5\tGood.\n2\t-0.6\tToo tepid\tand long\n3\t0.0\tNeither.\n"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        add(archive, "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", lines)
    path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        add(archive, name, inner.getvalue())
    texts, ratings = read_snippets(path)
    assert texts == ["Good.", "Too tepid\tand long"]
    assert ratings.tolist() == pytest.approx([2.5, -0.6])


def test_padding_that_nobody_needs_is_cut():
    batch = Batch(torch.tensor([[5, 6, 0, 0], [7, 0, 0, 0]]), torch.tensor([0, 1]))
    assert trimmed(batch).inputs.tolist() == [[5, 6], [7, 0]]


def test_without_a_hub_the_message_says_so(monkeypatch):
    class Unreachable:
        @staticmethod
        def load_dataset(*name):
            raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", Unreachable)
    for make in hub.HUB.values():
        with pytest.raises(DataError, match="hub could not be reached"):
            make(CPU)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets transformers"):
        hub.cifar10(CPU)


def test_a_hubs_images_train(monkeypatch):
    import numpy as np

    class Picture:
        def __init__(self, level):
            self.level = level

        def convert(self, mode):
            return np.full((32, 32, 3), self.level, np.uint8)

    split = {"img": [Picture(10 * i) for i in range(8)], "label": [i % 10 for i in range(8)]}
    monkeypatch.setattr(hub, "_load", lambda *name: {"train": split, "test": split})
    monkeypatch.setattr(hub, "CIFAR_BATCH", 4)
    problem = hub.cifar10(CPU, 2)
    images, labels = next(problem.batches(torch.Generator().manual_seed(0)))
    assert images.shape == (4, 3, 32, 32) and labels.shape == (4,)
    assert problem.model()(images).shape == (4, 10)


def test_images_are_shifted_and_flipped():
    images = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8) + 1
    changed = hub.augmented(images.repeat(50, 1, 1, 1), torch.Generator().manual_seed(0))
    assert changed.shape == (100, 3, 8, 8)
    left_alone = (changed == images.repeat(50, 1, 1, 1)).flatten(1).all(1)
    assert not left_alone.all()
    # a column of one image is one of its columns, shifted by some rows, or padding
    rows = {tuple(row.tolist()) for row in images[0, 0]}
    shifted = [row for row in changed[0, 0] if 0.0 not in row.tolist()]
    assert all(tuple(r.tolist()) in rows or tuple(r.flip(0).tolist()) in rows for r in shifted)


def test_a_hubs_texts_train(monkeypatch):
    from bench.models.bert import Bert, BertSize

    size = BertSize(vocabulary=40, width=16, layers=1, heads=2, inner=32, positions=256)
    monkeypatch.setattr(hub, "BASE", size)

    def tokenizer(*columns, **how):
        assert how["max_length"] == hub.GLUE_LONGEST
        rows = [[1, 2 + i % 30, 3, 0] for i in range(len(columns[0]))]
        return {"input_ids": rows}

    monkeypatch.setattr(hub, "_pretrained", lambda: (tokenizer, Bert(size).state_dict()))
    split = {"sentence1": ["a"] * 40, "sentence2": ["b"] * 40, "label": [0, 1] * 20}
    monkeypatch.setattr(hub, "_load", lambda *name: {"train": split, "validation": split})
    problem = hub.mrpc(CPU)
    assert problem.plain_steps == hub.GLUE_EPOCHS
    tokens, _ = next(problem.batches(torch.Generator().manual_seed(0)))
    assert tokens.shape == (32, 3)
    assert problem.model()(tokens).shape == (32, 2)
