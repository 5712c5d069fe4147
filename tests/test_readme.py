"""The README's Python is run, from its own text."""

from __future__ import annotations

import re
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from models import make_batch, make_net
from torch import nn

from salsa_fused import FusedSaLSa

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    textwrap.dedent(block)
    for block in re.findall(r"^ *```python\n(.*?)^ *```", README, re.M | re.S)
]


def block_with(text: str) -> str:
    (found,) = [block for block in BLOCKS if text in block]
    return found


@pytest.fixture
def names():
    torch.manual_seed(0)
    model = make_net()
    return {
        "torch": torch,
        "model": model,
        "loss_function": nn.MSELoss(),
        "loader": [make_batch(step) for step in range(40)],
        "batches": [make_batch(step, 8) for step in range(4)],
        "optimizer": FusedSaLSa(model.parameters(), module=model),
        "steps": 100,
    }


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_every_block_is_tested():
    assert len(BLOCKS) == 3


def test_swap_it_in(names):
    exec(block_with("for inputs, targets in loader"), names)
    assert names["optimizer"].metrics()["steps"] == 40
    assert names["loss"] < 3.0


def test_accumulation_and_clipping(names):
    for _ in range(30):
        exec(block_with("clip_grad_norm_"), names)
    optimizer = names["optimizer"]
    assert optimizer.metrics()["steps"] == 30 and optimizer.last_search.outcome == "accepted"
    optimizer.param_groups[0]["steps_since_search"] = 99
    exec(block_with("clip_grad_norm_"), names)
    assert optimizer.last_search.loss == pytest.approx(names["total"].item())


def test_schedule(names):
    exec(block_with("CosineAnnealingLR"), names)
    factors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls its own deprecated step(epoch)
        for inputs, targets in names["loader"] * 3:
            factors.append(names["optimizer"].param_groups[0]["lr"])
            names["optimizer"].step(
                lambda x=inputs, y=targets: names["loss_function"](names["model"](x), y)
            )
            names["scheduler"].step()
    assert factors[0] == pytest.approx(1 / 30)
    assert factors[29] < 1.0 and factors[30:50] == pytest.approx([1.0] * 20)
    assert factors[51] < 1.0 and factors[99] < 0.01


def test_the_recipes_in_one_line(names):
    import salsa_fused

    params = list(names["model"].parameters())
    names |= {"params": params, "FusedSaLSa": FusedSaLSa, "salsa_fused": salsa_fused}
    lines = re.findall(r"`(FusedSaLSa\(params[^`]*\))`", README)
    assert len(lines) == 2
    for line in lines:
        assert isinstance(eval(line, names), FusedSaLSa)
    adam = torch.optim.Adam(params)
    assert "`optimizer.load_state_dict(adam.state_dict())`" in README
    names["optimizer"].load_state_dict(adam.state_dict())
