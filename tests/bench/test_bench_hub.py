"""The papers' own data sets, without a hub."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from bench import hub
from bench.networks import bert, bert_config
from bench.sets.batches import Batch
from bench.sets.fetch import DataError

CPU = torch.device("cpu")


def test_without_a_hub_the_message_says_so(monkeypatch):
    class Unreachable:
        @staticmethod
        def load_dataset(*name):
            raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", Unreachable)
    for name, make in hub.HUB.items():
        with pytest.raises(DataError, match="hub could not be reached"):
            make(name, CPU)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        hub.HUB["cifar10"]("cifar10", CPU)


def test_a_hubs_images_train(monkeypatch):
    class Picture:
        def __init__(self, level):
            self.level = level

        def convert(self, mode):
            return np.full((32, 32, 3), self.level, np.uint8)

    split = {"img": [Picture(10 * i) for i in range(8)], "label": [i % 10 for i in range(8)]}
    monkeypatch.setattr(hub, "_load", lambda *name: {"train": split, "test": split})
    monkeypatch.setattr(hub, "CIFAR_BATCH", 4)
    problem = hub.HUB["cifar10"]("cifar10", CPU)
    images, labels = next(problem.batches(torch.Generator().manual_seed(0)))
    assert images.shape == (4, 3, 32, 32) and labels.shape == (4,)
    assert problem.model()(images).shape == (4, 10)


def test_images_are_shifted_and_flipped():
    images = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8) + 1
    batch = Batch(images.repeat(50, 1, 1, 1), torch.arange(100))
    changed, labels = hub.augmented(torch.Generator().manual_seed(0), batch)
    assert torch.equal(labels, batch.targets)
    assert changed.shape == (100, 3, 8, 8)
    left_alone = (changed == images.repeat(50, 1, 1, 1)).flatten(1).all(1)
    assert not left_alone.all()
    # a column of one image is one of its columns, shifted by some rows, or padding
    rows = {tuple(row.tolist()) for row in images[0, 0]}
    shifted = [row for row in changed[0, 0] if 0.0 not in row.tolist()]
    assert all(tuple(r.tolist()) in rows or tuple(r.flip(0).tolist()) in rows for r in shifted)


def test_a_hubs_texts_train(monkeypatch):
    config = bert_config(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=256,
    )  # fmt: skip

    def tokenizer(*columns, **how):
        assert how["max_length"] == hub.GLUE_LONGEST
        return {"input_ids": [[1, 2 + i % 30, 3, 0] for i in range(len(columns[0]))]}

    known = bert(config)
    monkeypatch.setattr(hub, "_pretrained", lambda: (tokenizer, known))
    split = {"sentence1": ["a"] * 40, "sentence2": ["b"] * 40, "label": [0, 1] * 20}
    monkeypatch.setattr(hub, "_load", lambda *name: {"train": split, "validation": split})
    problem = hub.HUB["mrpc"]("mrpc", CPU)
    assert problem.plain_steps == hub.GLUE_EPOCHS
    tokens, _ = next(problem.batches(torch.Generator().manual_seed(0)))
    assert tokens.shape == (32, 3)
    model = problem.model()
    assert model(tokens).shape == (32, 2)
    assert torch.equal(model.model.bert.pooler.dense.weight, known.pooler.dense.weight)
