"""What README and docs say: their Python is run, from its own text, and what they name exists."""

from __future__ import annotations

import ast
import inspect
import re
import warnings

import pytest
import torch
from pages import BLOCKS, PAGES, ROOT, block_with
from small_net import make_batch, make_net
from torch import nn

import salsa_fused
from salsa_fused import FusedSaLSa

README = PAGES[0].read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")

# Blocks that tests in tests/integrations run.
TRAINERS = ("SaLSaTrainer(", "SaLSaCallback(", "evaluate(accelerator, optimizer, model)")
# Blocks that tests below run, with more than the names that every page may use.
BELOW = (
    "if not optimizer.in_trial",
    "step(closure, loss=total)",
    "scaler = torch.amp.GradScaler",
    "as_factor",
    "CosineAnnealingLR",
    "fully_shard(model)",
    "of_generator.step",
    "LR_DISTRIBUTION",
    "checkpoint.pt",
    "adam = torch.optim.AdamW",
    "torch.autocast(device, torch.bfloat16)",
    "master_weights=True",
)
LOOPS = [
    "optimizer.step(closure)  # zero_grad",
    "weight_decay=0.01)\n\nfor",
    "loss.backward()  # or",
]


@pytest.fixture
def names():
    """What a block may use without making it."""
    torch.manual_seed(0)
    model = make_net()
    inputs, targets = make_batch()
    return {
        "torch": torch,
        "nn": nn,
        "salsa_fused": salsa_fused,
        "FusedSaLSa": FusedSaLSa,
        "model": model,
        "params": list(model.parameters()),
        "loss_function": nn.MSELoss(),
        "loader": [make_batch(step) for step in range(40)],
        "batches": [make_batch(step, 8) for step in range(4)],
        "inputs": inputs,
        "targets": targets,
        "optimizer": FusedSaLSa(model.parameters(), module=model),
        "steps": 100,
        "device": "cpu",
    }


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def train(names, steps=20):
    for step in range(steps):
        x, y = make_batch(step)
        names["optimizer"].step(lambda x=x, y=y: names["loss_function"](names["model"](x), y))


# -- every block ------------------------------------------------------------------------------


def test_there_are_blocks_on_many_pages():
    assert len(BLOCKS) >= 20
    assert len({block.where.partition(":")[0] for block in BLOCKS}) >= 8


@pytest.mark.parametrize("text", [*TRAINERS, *BELOW])
def test_a_block_that_is_run_by_itself_is_there_once(text):
    assert block_with(text)


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if not any(text in block.code for text in TRAINERS + BELOW)],
    ids=lambda block: block.where,
)
def test_every_other_block_runs(block, names):
    exec(compile(block.code, block.where, "exec"), names)


@pytest.mark.parametrize("text", TRAINERS)
def test_the_trainers_blocks_are_run_in_their_tests(text):
    tests = [path.read_text() for path in (ROOT / "tests" / "integrations").glob("test_*.py")]
    assert any(f"block_with({text!r})".replace("'", '"') in test for test in tests)
    ast.parse(block_with(text))


@pytest.mark.parametrize("text", LOOPS)
def test_the_loops_train(text, names):
    exec(block_with(text), names)
    assert names["optimizer"].metrics()["steps"] == 40
    assert names["loss"] < 3.0


def test_masters_and_16_bit_moments(names):
    exec(block_with("master_weights=True"), names)
    optimizer, model, inputs = names["optimizer"], names["model"], names["inputs"].bfloat16()
    optimizer.step(lambda: names["loss_function"](model(inputs).float(), names["targets"]))
    entry = next(iter(optimizer.state.values()))
    dtypes = {name: x.dtype for name, x in entry.items() if name != "step"}
    assert dtypes.pop("master_param") == dtypes.pop("window_start") == torch.float32
    assert dtypes == {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16}


def test_outputs(names):
    names["kept"] = {}
    exec(block_with("if not optimizer.in_trial"), names)
    loss = names["optimizer"].step(names["closure"])
    outputs = names["kept"]["outputs"]
    assert outputs.grad_fn is not None
    assert names["loss_function"](outputs, names["targets"]).item() == loss.item()


def test_accumulation_and_clipping(names):
    for _ in range(30):
        exec(block_with("step(closure, loss=total)"), names)
    optimizer = names["optimizer"]
    assert optimizer.metrics()["steps"] == 30 and optimizer.last_search.outcome == "accepted"
    optimizer.param_groups[0]["steps_since_search"] = 99
    exec(block_with("step(closure, loss=total)"), names)
    assert optimizer.last_search.loss == pytest.approx(names["total"].item())


def test_accumulation_without_a_closure(names):
    for _ in range(30):
        exec(block_with("weight=1 / len(batches)"), names)
    optimizer = names["optimizer"]
    assert optimizer.metrics()["steps"] == 30 and optimizer.metrics()["searches"] >= 10


def test_grad_scaler(names):
    inputs, targets = names["loader"][0]
    before = names["loss_function"](names["model"](inputs), targets).item()
    names["loader"] = names["loader"][:1] * 60
    exec(block_with("scaler = torch.amp.GradScaler"), names)
    optimizer = names["optimizer"]
    assert optimizer.metrics()["steps"] > 50 and names["scaler"].get_scale() > 1.0
    assert optimizer.metrics()["searches"] > 10
    assert names["loss"].item() < 0.8 * before


def test_autocast(names):
    with warnings.catch_warnings():
        # casts to bf16 disturb the check of the slope, as the page says
        warnings.filterwarnings("ignore", "after a small step the loss fell by")
        exec(block_with("torch.autocast(device, torch.bfloat16)"), names)
    assert names["optimizer"].metrics()["steps"] == 40 and names["loss"] < 3.0


def test_two_optimizers(names):
    torch.manual_seed(0)
    names |= {
        "generator": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)),
        "discriminator": nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)),
        "softplus": nn.functional.softplus,
        "images": [torch.randn(16, 2) for _ in range(40)],
    }
    exec(block_with("of_generator.step"), names)
    for one in ("of_generator", "of_discriminator"):
        metrics = names[one].metrics()
        assert metrics["steps"] + metrics["skipped_steps"] == 40 and metrics["steps"] >= 35


# -- schedules, groups, checkpoints -----------------------------------------------------------


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


def test_a_learning_rate_distribution(names):
    layers = [nn.Linear(4, 4) for _ in range(8)]
    parts = {"words": nn.Embedding(5, 4), "layers": nn.ModuleList(layers), "head": nn.Linear(4, 2)}
    names["transformer"] = nn.ModuleDict(parts)
    exec(block_with("LR_DISTRIBUTION"), names)
    assert [group["lr"] for group in names["groups"]] == list(names["LR_DISTRIBUTION"])
    assert len(names["optimizer"].param_groups) == 10


def test_save_and_resume(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(names)
    exec(block_with("checkpoint.pt"), names)
    runs = []
    for _ in range(2):
        for part in ("model", "optimizer"):
            names[part].load_state_dict(names["checkpoint"][part])
        torch.set_rng_state(names["checkpoint"]["random"])
        train(names)
        runs.append([*names["model"].state_dict().values()])
        runs[-1].append(torch.tensor(names["optimizer"].applied_step_size))
    assert all(map(torch.equal, *runs))


def test_back_to_adamw(names):
    train(names)
    exec(block_with("adam = torch.optim.AdamW"), names)
    x, y = make_batch(50)
    names["loss_function"](names["model"](x), y).backward()
    names["adam"].step()
    entry = names["adam"].state[names["params"][0]]
    assert entry["step"] == 21


def test_from_adam(names):
    adam = torch.optim.Adam(names["params"])
    quick_start = (ROOT / "docs" / "quick_start.md").read_text(encoding="utf-8")
    assert "`optimizer.load_state_dict(adam.state_dict())`" in quick_start
    names["optimizer"].load_state_dict(adam.state_dict())


def test_the_settings_in_one_line(names):
    lines = re.findall(r"`(FusedSaLSa\(params[^`]*\))`", SETTINGS)
    assert len(lines) >= 2
    for line in lines:
        assert isinstance(eval(line, names), FusedSaLSa)


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


# -- what is named ----------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "least"), [("README.md", 12), ("docs/trainers.md", 19)])
def test_what_the_table_names_exists(page, least):
    """Each line has a test that proves it, except what is not tested."""
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if len(row) == 3 and re.match(r" (yes|no)", row[1])]
    assert len(rows) >= least
    for feature, works, proof in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof)
        assert named or works.strip() == "not tested yet", feature
        for path, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.M), (feature, test)


def test_constants_that_are_listed_are_those_of_the_code():
    """In docs/settings.md the defaults, in docs/how_it_works.md those and the paper's."""
    arguments = inspect.signature(FusedSaLSa).parameters
    defaults = {name: argument.default for name, argument in arguments.items()}
    named = {"doubling": '"doubling"', "rate": '"rate"', "yes": "True", "no": "False"}

    def is_equal(text, value):
        text = text.strip().strip("`")
        text = named.get(text.strip('"'), text).replace("^", "**").split(" for ")[0]
        return text == repr(value).replace("'", '"') or eval(text) == value

    table = SETTINGS.split("## Constants of the search")[1]
    rows = re.findall(r"^\| `([\w\[\]]+)`(?:, `\w+`)? \| ([^|]+) \|", table, re.M)
    assert len(rows) == 7
    for name, text in rows:
        value = defaults["betas"][2] if name == "betas[2]" else defaults[name]
        assert is_equal(text.split(', `"')[0], value), (name, text, value)

    table = (ROOT / "docs" / "how_it_works.md").read_text().split("## The constants")[1]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", table, re.M)
    assert len(rows) == 6
    defaults["look_back"] = True  # None: with this direction it does
    for name, ours, papers in rows:
        assert is_equal(ours, defaults[name]), (name, ours)
        assert is_equal(papers, salsa_fused.settings.PAPER[name]), (name, papers)


def test_commands_that_are_named_exist():
    """``make NAME``, and ``python -m bench NAME``."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    targets = set(re.findall(r"^([\w-]+)(?: [\w-]+)*:", (ROOT / "Makefile").read_text(), re.M))
    made = set(re.findall(r"(?:`|^    )make ([\w-]+)", text, re.M))
    assert len(made) >= 5 and made <= targets | {"test-gpu"}
    commands = (ROOT / "bench" / "__main__.py").read_text()
    for command in set(re.findall(r"python -m bench (\w+)", text)):
        assert f'"{command}": (' in commands, command


def test_warnings_that_are_listed_exist():
    """The text in the FAQ's table is that of a warning, with "..." for what is filled in."""
    faq = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    table = faq.split("## Warnings and what to do")[1]
    listed = re.findall(r"^\| `([^`]+)` \|", table, re.M)
    assert len(listed) >= 15
    said = [text for path in (ROOT / "salsa_fused").rglob("*.py") for text in strings_of(path)]
    for text in listed:
        pattern = ".*".join(re.escape(part) for part in text.split("..."))
        assert any(re.search(pattern, one, re.S) for one in said), text


def strings_of(path):
    """Return the strings in a file, with "..." for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"\{[^}]*\}", "...", node.value))
    return found
