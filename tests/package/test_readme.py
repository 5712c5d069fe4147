"""The README's Python is run, from its own text."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from readme import BLOCKS, README, block_with
from small_net import make_batch, make_net
from torch import nn

from salsa_fused import FusedSaLSa


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
        "device": "cpu",
    }


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_every_block_is_tested():
    """Here, and in tests/integrations."""
    assert len(BLOCKS) == 12


def test_swap_it_in(names):
    exec(block_with("loss = optimizer.step(closure)  # zero_grad"), names)
    assert names["optimizer"].metrics()["steps"] == 40
    assert names["loss"] < 3.0


def test_16_bit_weights(names):
    names["FusedSaLSa"] = FusedSaLSa
    exec(block_with("master_weights=True"), names)
    (inputs, targets), optimizer = names["loader"][0], names["optimizer"]
    outputs = lambda: names["model"](inputs.bfloat16()).float()  # noqa: E731
    optimizer.step(lambda: names["loss_function"](outputs(), targets))
    dtypes = {
        name: x.dtype for name, x in next(iter(optimizer.state.values())).items() if name != "step"
    }
    assert dtypes.pop("master_param") == dtypes.pop("window_start") == torch.float32
    assert dtypes == {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16}


def test_outputs(names):
    names |= {"kept": {}, "inputs": names["loader"][0][0], "targets": names["loader"][0][1]}
    exec(block_with("if not optimizer.in_trial"), names)
    loss = names["optimizer"].step(names["closure"])
    outputs = names["kept"]["outputs"]
    assert outputs.grad_fn is not None
    assert names["loss_function"](outputs, names["targets"]).item() == loss.item()


def test_a_schedule_becomes_a_factor(names):
    names |= {
        "OneCycleLR": torch.optim.lr_scheduler.OneCycleLR,
        "group": names["optimizer"].param_groups[0],
        "learning_rate_at": lambda step: 3e-4,
        "step": 0,
    }
    exec(block_with("as_factor"), names)
    assert names["group"]["lr"] == pytest.approx(0.5)
    assert isinstance(names["scheduler"], torch.optim.lr_scheduler.OneCycleLR)


def test_evaluate(names):
    exec(block_with("loss.backward()  # or"), names)
    assert names["optimizer"].metrics()["steps"] == 40
    assert names["loss"] < 3.0


def test_accumulation_and_clipping(names):
    for _ in range(30):
        exec(block_with("optimizer.step(closure, loss=total)"), names)
    optimizer = names["optimizer"]
    assert optimizer.metrics()["steps"] == 30 and optimizer.last_search.outcome == "accepted"
    optimizer.param_groups[0]["steps_since_search"] = 99
    exec(block_with("optimizer.step(closure, loss=total)"), names)
    assert optimizer.last_search.loss == pytest.approx(names["total"].item())


def test_grad_scaler(names):
    inputs, targets = names["loader"][0]
    before = names["loss_function"](names["model"](inputs), targets).item()
    names["loader"] = names["loader"][:1] * 60
    exec(block_with("scaler = torch.amp.GradScaler"), names)
    optimizer = names["optimizer"]
    assert optimizer.metrics()["steps"] > 50 and names["scaler"].get_scale() > 1.0
    assert optimizer.metrics()["searches"] > 10
    assert names["loss"].item() < 0.8 * before


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


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without it")
def test_several_gpus(names, tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([make_net()])

        def forward(self, x):
            return self.blocks[0](x)

    names["model"] = Model()
    meeting = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own; and what it does at import
            exec(block_with("fully_shard(model)"), names)
    finally:
        torch.distributed.destroy_process_group()
    last = names["optimizer"].last_search
    assert names["optimizer"].metrics()["steps"] == 40 and last.loss < 3.0


def test_what_the_table_names_exists():
    """Each line has a test that proves it, except what is not tested."""
    rows = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if len(row) == 3 and re.match(r" (yes|no)", row[1])]
    assert len(rows) >= 19
    root = Path(__file__).parent.parent.parent
    for feature, works, proof in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof)
        assert named or works.strip() == "not tested yet", feature
        for path, test in named:
            assert re.search(rf"^def {test}\(", (root / path).read_text(), re.M), (feature, test)


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
