"""The problems whose data and weights a hub has: here of a stand-in, a tiny BERT and ResNet."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import transformers

from bench.methods import ADAM
from bench.optimizers import units_of
from bench.paper import hub
from bench.paper.hub import HUB
from bench.sets.batches import Batch
from bench.sets.fetch import DataError

CPU = torch.device("cpu")
PAD, UNKNOWN, CLS, SEP, MASK, YES, NO = range(7)
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no")
GLUE = [name for name in HUB if name.startswith("glue")]
CIFAR = {"cifar10": 10, "cifar100": 100}


class Rows:
    """As a part of a data set of the library `datasets` is read."""

    def __init__(self, **columns: list) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[next(iter(self.columns))])

    def __getitem__(self, chosen: slice) -> dict[str, list]:
        return {name: column[chosen] for name, column in self.columns.items()}


def sentences(task: str, split: str) -> Rows:
    """Seventy to train on, nine to validate on; the first word of the first one is the label."""
    first, *second = {
        "mrpc": ("sentence1", "sentence2"), "sst2": ("sentence",),
        "qnli": ("question", "sentence"), "mnli": ("premise", "hypothesis"),
    }[task]  # fmt: skip
    assert split in ("train", "validation_matched" if task == "mnli" else "validation")
    count, classes = 70 if split == "train" else 9, 3 if task == "mnli" else 2
    columns = {first: ["yes no " * (1 + row % 5) for row in range(count)]}
    columns |= {name: ["no"] * count for name in second}
    return Rows(**columns, label=[row % classes for row in range(count)])


def images(name: str, split: str) -> Rows:
    assert split in ("train", "test")
    drawn = np.random.default_rng(len(split))
    shape = (140 if split == "train" else 30, 8, 8, 3)
    pixels = drawn.integers(256, size=shape, dtype=np.uint8) // 2 + np.uint8([0, 40, 120])
    labels = [row % 100 for row in range(shape[0])]
    if name == "uoft-cs/cifar10":
        return Rows(img=list(pixels), label=[label % 10 for label in labels])
    assert name == "uoft-cs/cifar100"
    return Rows(img=list(pixels), fine_label=labels, coarse_label=[label // 5 for label in labels])


def load_dataset(name: str, *task: str, split: str) -> Rows:
    if name == "nyu-mll/glue":
        return sentences(*task, split)
    return images(name, split)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=hub.LONGEST,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def library(monkeypatch):
    """The stand-in of `datasets`."""
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


@pytest.fixture
def make(library, tiny_bert, monkeypatch):
    monkeypatch.setattr(hub, "BERT", tiny_bert)
    return lambda name: HUB[name](name, CPU)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tokenizer(tiny_bert):
    return transformers.AutoTokenizer.from_pretrained(tiny_bert)


# --- GLUE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GLUE)
def test_a_batch_of_sentences(name, make):
    problem, classes = make(name), 3 if name == "glue-mnli" else 2
    inputs, targets = next(problem.batches(generator()))
    assert inputs.shape == (32, 2, inputs[:, 0].ne(PAD).sum(1).max()) and targets.shape == (32,)
    assert targets.unique().tolist() == list(range(classes))
    tokens, types = inputs.unbind(1)
    assert (types.sum() > 0) == (name != "glue-sst2")  # pairs
    assert (tokens[:, 0] == CLS).all() and (types[tokens == PAD] == 0).all()
    assert problem.model()(inputs).shape == (32, classes)
    assert problem.plain_steps == 5 * (70 // 32) and problem.checkpoints == 5
    assert sum(len(part.targets) for part in problem.validation_sample) == 9


def test_pairs_are_told_apart_and_padded_at_their_end(tokenizer):
    rows = Rows(one=["yes no", "yes"], two=["no", "no no"], label=[1, 0])
    found = hub.trimmed_pairs(hub.encoded(tokenizer, rows, ("one", "two"), chunk=1))
    tokens, types = found.inputs.unbind(1)
    assert tokens.tolist() == [[CLS, YES, NO, SEP, NO, SEP], [CLS, YES, SEP, NO, NO, SEP]]
    assert types.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert found.targets.tolist() == [1, 0]
    (single,) = hub.trimmed_pairs(hub.encoded(tokenizer, rows, ("one",))).inputs[1:]
    assert single.tolist() == [[CLS, YES, SEP, PAD], [0, 0, 0, 0]]


def test_long_sentences_are_cut(tokenizer, make):
    rows = Rows(one=["yes " * 400], two=["no " * 200], label=[0])
    for columns, kept in ((("one",), 254), (("one", "two"), 253)):
        inputs = hub.encoded(tokenizer, rows, columns).inputs
        assert inputs.shape == (1, 2, 256)
        assert inputs[0, 0].ge(YES).sum() == kept
        assert {YES, NO}.issuperset(inputs[0, 0, inputs[0, 0] > MASK].tolist())
        assert (NO in inputs[0, 0]) == (len(columns) == 2)  # the longer one is cut first
        make("glue-mnli").model()(inputs.long())


def test_types_count_and_padding_does_not(make):
    model = make("glue-mrpc").model().eval()
    tokens = torch.tensor([[CLS, YES, SEP, NO, SEP]])
    pair = torch.stack((tokens, torch.tensor([[0, 0, 0, 1, 1]])), 1)
    torch.testing.assert_close(model(pair), model(torch.nn.functional.pad(pair, (0, 3))))
    assert not torch.allclose(model(pair), model(pair * torch.tensor([[[1], [0]]])))


def test_the_weights_are_the_hubs_and_the_head_is_a_new_one(make, tiny_bert):
    problem = make("glue-sst2")
    torch.manual_seed(0)
    one = problem.model().state_dict()
    torch.manual_seed(1)
    other = problem.model().state_dict()
    known = transformers.AutoModel.from_pretrained(tiny_bert).state_dict()
    assert all(torch.equal(weight, one[f"model.bert.{name}"]) for name, weight in known.items())
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    assert differ == ["model.classifier.weight"]
    dropped = [m.p for m in problem.model().modules() if isinstance(m, torch.nn.Dropout)]
    assert problem.model().training and set(dropped) == {0.1}
    assert len(units_of(problem.model())) == 2 + 2  # a transformer's: embeddings, layers, head


# --- CIFAR ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CIFAR)
def test_a_batch_of_images(name, make):
    problem, classes = make(name), CIFAR[name]
    inputs, targets = next(problem.batches(generator()))
    assert inputs.shape == (128, 3, 8, 8) and targets.shape == (128,)
    labels = torch.cat([part.targets for part in problem.train_sample])
    assert labels.unique().tolist() == list(range(classes))
    assert problem.plain_steps == 100 and problem.checkpoints == 20
    assert re.match(r"21,\d{3},\d{3} parameters", problem.description)  # as a ResNet-34 has
    kept = torch.cat([part.inputs for part in problem.train_sample])
    deviations, means = torch.std_mean(kept, (0, 2, 3))
    torch.testing.assert_close(means, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(deviations, torch.ones(3))


def test_images_move_and_are_mirrored():
    image = torch.arange(1.0, 73.0).view(1, 8, 9)
    batch = Batch(image.expand(3000, 1, 8, 9), torch.arange(3000))
    moved = hub.augmented(batch, generator())
    assert moved.inputs.shape == batch.inputs.shape and moved.inputs.is_contiguous()
    assert torch.equal(moved.targets, batch.targets)
    padded = torch.nn.functional.pad(image, [4] * 4)
    crops = [padded[:, i : i + 8, j : j + 9] for i in range(9) for j in range(9)]
    known = {tuple(one.flatten().tolist()) for crop in crops for one in (crop, crop.flip(-1))}
    assert {tuple(one.flatten().tolist()) for one in moved.inputs} == known  # all of them, no other


def test_the_generator_decides_how_images_move(make):
    problem = make("cifar10")
    one, again, other = (
        list(islice(problem.batches(generator(seed)), 3)) for seed in (0, 0, 1)
    )  # of three epochs
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(one, again))
    assert not torch.equal(one[0].inputs, other[0].inputs)
    assert torch.equal(problem.train_sample[0].inputs, make("cifar10").train_sample[0].inputs)


# --- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HUB)
def test_every_problem_trains_the_same_way_each_time(name, make):
    size = {"width": 4, "blocks": (1, 1)} if name in CIFAR else {}
    problem = replace(HUB[name](name, CPU, **size), plain_steps=2, checkpoints=1)
    run, again = (problem.run(ADAM, 0, CPU) for _ in range(2))
    assert len(run.losses) == 2 and np.isfinite(run.losses).all()
    assert run.losses == again.losses and run.checkpoints == again.checkpoints
    assert 0 <= run.checkpoints[-1].validation_accuracy <= 1
    assert problem.case == name


def test_titles_are_unique():
    titles = [make.args[-1] for make in HUB.values()]
    assert len(set(titles)) == len(titles)


def test_without_the_library_it_is_said_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, data in (("glue-mrpc", "nyu-mll/glue mrpc"), ("cifar10", "uoft-cs/cifar10")):
        with pytest.raises(DataError, match=rf"^{data} .*datasets.*: pip install .*bench,hub\]'$"):
            make(name)


def test_without_the_hub_it_is_said_what_cannot_be_had(make, library, tiny_bert, monkeypatch):
    def unreachable(*_: str, **__: str) -> None:
        raise OSError("We couldn't connect.\nCheck your connection.")

    said = (
        " cannot be had from huggingface.co (We couldn't connect): connect and run again, "
        "or copy the hub's cache (HF_HOME) from where it is"
    )
    with monkeypatch.context() as patch:
        patch.setattr(transformers.AutoModel, "from_pretrained", unreachable)
        with pytest.raises(DataError) as error:
            make("glue-qnli")
    assert str(error.value) == tiny_bert + said
    library.load_dataset = unreachable
    with pytest.raises(DataError) as error:
        make("glue-qnli")
    assert str(error.value) == "nyu-mll/glue qnli" + said
