"""Timings and peak memory: rounds, ratios, kinds of steps, and what is said of what is missing."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from bench import kernels, networks, steps
from bench.kernels import Timed
from bench.methods import Method, adamw
from bench.optimizers import fused_salsa
from bench.results import Results
from bench.sets import text
from bench.sets.batches import Batch
from bench.steps import PLAIN, Stepper, Workload, loss_of, settled, with_peak_memory
from bench.tables import by_case, overview, to_markdown
from salsa_fused import FusedSaLSa

CPU = torch.device("cpu")
MB = 1_000_000
FUSED = "torch Adam, fused"


# --- kernels --------------------------------------------------------------------------------------


def test_kernels_are_timed_in_turn():
    order: list[str] = []
    calls = {name: partial(order.append, name) for name in ("copy", "fused")}
    clock = partial(kernels.host_time, before=partial(order.append, "before"))
    seconds = kernels.in_turn(calls, 3, clock)
    assert order[:6] == ["copy", "fused"] * 3  # the warm-up
    assert order[6:14] == [
        "before", "copy", "before", "fused", "before", "fused", "before", "copy",
    ]  # fmt: skip
    assert [len(values) for values in seconds.values()] == [3, 3]


@pytest.mark.parametrize("together", [True, False])
def test_ratios_are_taken_within_a_round_or_to_the_median(together):
    seconds = {kernels.COPY: [1.0, 2.0], FUSED: [2.0, 8.0], "foreach": [4.0, 8.0]}
    found = {kernels.COPY: Timed(list, 2), FUSED: Timed(list, 7), "foreach": Timed(list, 7)}
    case = kernels.Case("c", [torch.Size([10**9])])
    rows = {(row.optimizer, row.metric): row
            for row in kernels.rows_of(case, found, seconds, together)}  # fmt: skip
    assert rows["foreach", "to_fused"].median == (1.5 if together else 1.2)
    assert rows[kernels.COPY, "bandwidth"].median == pytest.approx(6.0)
    of_copy = (14 / 8 + 3.5 / 4) / 2 if together else 3.5 * 1.5 * (1 / 2 + 1 / 8) / 2
    assert rows[FUSED, "of_copy"].median == pytest.approx(of_copy, rel=1e-4)


def test_every_kernel_runs_on_a_small_model(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "TENSORS", 3)
    monkeypatch.setattr(kernels, "CPU_MODELS", {"small": (300, False, torch.float16)})
    file = tmp_path / "kernels.json"
    assert kernels.kernels(Namespace(device="cpu", rounds=2, json=file)) == 0
    found = Results.read(file)
    names = {row.optimizer for row in found.rows}
    assert {"first_trial", "next_trial", "alignment", "a plain step"} <= names
    assert found.settings["cases"][0] == "small, 1 thread"


def test_bytes_of_a_parameter():
    timed = kernels.all_timed("Adam", [None])
    moved = {name: one.bytes_of(torch.float32) for name, one in timed.items()}
    wanted = {"copy": 8, "first_trial": 20, "next_trial": 16, "a plain step": 28, "alignment": 12}
    assert wanted.items() <= moved.items()
    assert timed["adam_step after a search"].bytes_of(torch.bfloat16) == 22


def test_gpu_kernels_are_measured_and_what_is_missing_is_reported(monkeypatch):
    """On the CPU, with the C++ kernels: the clock differs, nothing else."""
    monkeypatch.setitem(kernels.FLUSH_BYTES, "cpu", 1 << 16)
    monkeypatch.setattr(kernels, "plain_step", lambda weights, backend: 1 / 0)
    tiny = {"tiny": (partial(nn.Linear, 30, 10), torch.bfloat16)}
    monkeypatch.setattr(kernels, "GPU_MODELS", tiny)
    timed = kernels.all_timed("AdamW", ["native"])
    found = kernels.measure([*kernels.gpu_cases()], timed, CPU, 3, together=False)
    found.environment["kind"] = "gpu"
    assert found.settings["cases"] == ["tiny, 0 M"]
    skipped = found.settings["missing"]
    assert "ZeroDivisionError" in skipped["tiny, 0 M: a plain step, native"]
    names = {row.optimizer for row in found.rows}
    ours = ("first_trial", "next_trial", "adam_step after a search", "alignment")
    assert {f"{name}, native" for name in ours} <= names
    own = {row.metric: row for row in found.rows if row.optimizer == "next_trial, native"}
    assert own["bandwidth"].n == 3 and own["to_fused"].median > 0.0
    text = to_markdown(by_case(found))
    assert "| next_trial, native |" in text and "Left out: " in text


def test_a_gpu_without_room_is_reported(monkeypatch):
    def full(*arguments, **keywords):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "empty", full)
    case, timed = kernels.Case("c", [torch.Size((10,))]), kernels.all_timed("AdamW", [])
    found = kernels.measure([case], timed, CPU, 1, together=False)
    assert found.settings["missing"] == {f"c: {name}": "no room" for name in timed}
    assert not found.rows


def test_the_host_is_timed_without_launches(tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(kernels, "HOST_TENSORS", 3)
    file = tmp_path / "host.json"
    assert kernels.host(Namespace(device="cpu", rounds=4, json=file)) == 0
    found = Results.read(file)
    assert found.rows_of("stay", "to_fused")[kernels.ADAM].median == 1.0
    for case in ("move", "closure"):
        assert found.rows_of(case, "time")[kernels.OURS].median > 0.0
    assert "copies and launches left out of both" in by_case(found).caption
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = FusedSaLSa([weight], search_period=None)
    optimizer.step()
    assert weight[0] != 1.0  # the launches are there again
    assert optimizer.backends[0] == "native"


# --- peak memory ----------------------------------------------------------------------------------


def tiny(width: int = 8) -> Workload:
    def draw(batch, length, generator):
        while True:
            x = torch.randn(batch, length, generator=generator)
            yield Batch(x, (x.sum(1) > 0).long())

    return Workload("Tiny", partial(nn.Linear, width, 2), draw, 4, width)


def heavy() -> Workload:
    """200,200 parameters, and next to nothing else."""
    return tiny(1000)._replace(model=partial(nn.Linear, 1000, 200))


def test_peak_memory_is_what_tensors_take_at_once():
    def run():
        first = torch.empty(4 * MB, dtype=torch.int8)
        second = torch.empty(2 * MB, dtype=torch.int8)
        del first
        third = torch.empty(3 * MB, dtype=torch.int8)
        return second, third

    assert with_peak_memory(run, CPU)[1] == pytest.approx(6 * MB, rel=0.01)


def peak_and_held(method: Method) -> tuple[float, float]:
    _, figures = settled(heavy(), method, CPU)
    return figures.peak, figures.held


def test_adam_holds_sixteen_bytes_a_parameter():
    peak, held = peak_and_held(adamw("AdamW", "", 1e-3, fused=True))
    assert held == pytest.approx(16.0, abs=0.01)
    assert 16 * 200_200 <= peak < 17 * 200_200


@pytest.mark.parametrize("look_back, tensors", [(False, 1), (None, 2)])
def test_fused_salsa_takes_the_saved_weights_and_the_windows_start_and_no_more(look_back, tensors):
    ours, _ = peak_and_held(fused_salsa(look_back=look_back))
    theirs, _ = peak_and_held(adamw("AdamW", "", 1e-3, fused=True))
    assert 0 <= ours - theirs < 4.1 * tensors * 200_200  # in fp32


# --- steps ----------------------------------------------------------------------------------------


def test_a_step_with_a_search_is_told_apart_from_a_plain_one():
    stepper = Stepper(tiny(), fused_salsa(search_period=4), CPU)
    kinds = [step.kind for step in stepper.steps(30)]
    assert all(kind != PLAIN for kind in kinds[:10])  # the first ten all search
    assert kinds[10:].count(PLAIN) == 15
    plain = Stepper(tiny(), adamw(), CPU)
    assert {step.kind for step in plain.steps(5)} == {PLAIN}


def test_all_methods_see_the_same_batches_and_weights():
    ours = Stepper(tiny(), fused_salsa(), CPU)
    theirs = Stepper(tiny(), adamw(), CPU)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(next(ours.batches).inputs, next(theirs.batches).inputs)


@pytest.fixture
def tiny_workloads(monkeypatch):
    monkeypatch.setattr(steps, "ON_CPU", (tiny(),))
    monkeypatch.setattr(steps, "REAL_SIZES", (tiny(1000),))
    for name in ("METHODS", "MEMORY_METHODS"):
        kept = [method for method in getattr(steps, name) if method.name != "AdamW, compiled"]
        monkeypatch.setattr(steps, name, kept)
    monkeypatch.setitem(sys.modules, "prodigyopt", None)


def test_step_writes_rows_and_a_table(tiny_workloads, tmp_path, capsys):
    arguments = Namespace(device="cpu", rounds=2, json=tmp_path / "step.json")
    assert steps.step(arguments) == 0
    found = Results.read(arguments.json)
    assert found.rows_of("tiny", "to_fused")[steps.FUSED].median == 1.0
    ours = found.rows_of("tiny", "extra_forwards")[steps.OURS].median
    assert 0.0 < ours <= 1.5
    assert found.rows_of("tiny", "time")[f"{steps.OURS}: {PLAIN}"].median > 0.0
    assert "Tiny: Prodigy" in found.settings["missing"]
    text = to_markdown(by_case(found))
    assert "| Tiny, 0.0 M parameters, batch 4 x 8 | AdamW, fused |" in text
    assert "Left out: Tiny: Prodigy" in text
    assert "| fused AdamW | AdamW, fused | 1.00 |" in to_markdown(overview(found))
    assert "python -m bench data" in capsys.readouterr().out.replace("\n", " ")


def test_memory_writes_rows_and_a_table(tiny_workloads, tmp_path):
    arguments = Namespace(device="cpu", json=tmp_path / "memory.json")
    assert steps.memory(arguments) == 0
    found = Results.read(arguments.json)
    assert found.rows_of("tiny", "to_fused")[steps.OURS].median >= 1.0
    held = {name: row.median for name, row in found.rows_of("tiny", "held").items()}
    wanted = {steps.FUSED: 16, steps.OURS: 20, f"{steps.OURS}, look_back=False": 16}
    wanted |= {one.name: bytes_ for one, bytes_ in zip(steps.MEMORY_METHODS[-3:], (8, 16, 12))}
    assert {name: held[name] for name in wanted} == pytest.approx(wanted, abs=0.1)
    assert "| AdamW, fused |" in to_markdown(by_case(found))


def test_what_fails_is_reported_and_the_rest_goes_on():
    missing: dict[str, str] = {}
    broken = replace(adamw("broken"), build=lambda model: 1 / 0)
    found = steps.measure(tiny(), [broken, adamw(steps.FUSED, fused=True)], CPU, 1, missing)
    assert list(found) == [steps.FUSED]
    assert missing == {"Tiny: broken": "ZeroDivisionError: division by zero"}


# --- workloads ------------------------------------------------------------------------------------


def test_every_workload_says_what_it_is():
    every = (*steps.ON_CPU, *steps.REAL_SIZES, *steps.ON_GPU)
    sizes = {one.title: one.describe() for one in every}
    assert all(said.startswith(f"{title}, ") for title, said in sizes.items())
    assert "25.6 M" in sizes["ResNet-50"] and "1,557.6 M" in sizes["GPT-2 XL"]


def test_images_and_text_can_be_learnt(monkeypatch):
    characters = text.encode(["to be or not to be, that is the question. " * 40])
    monkeypatch.setattr(steps, "plays", lambda: characters)
    images = Workload("I", partial(networks.resnet, 18), steps.images, 2, 32)
    words = Workload("L", partial(networks.llama, "tiny"), steps.text, 2, 16)
    for workload in (images, words):
        stepper = Stepper(workload, adamw(), CPU)
        batch = next(stepper.batches)
        before = loss_of(stepper.model, batch, CPU).item()
        stepper.batches = iter([batch] * 6)
        for _ in range(6):
            stepper.steps(1)
        assert loss_of(stepper.model, batch, CPU).item() < before


def test_one_word_in_seven_is_masked(monkeypatch):
    rows = torch.randint(200, 300, (40, 30))
    monkeypatch.setattr(steps, "reviews", lambda: (Batch(rows, rows[:, 0]), None))
    tiny = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setitem(networks.BERT_SIZES, "small", {**tiny, "intermediate_size": 32})
    workload = Workload("B", partial(steps.bert, "small"), steps.masked, 16, 32)
    tokens, targets = next(workload.draw(16, 32, torch.Generator().manual_seed(0)))
    masked = targets != steps.IGNORED
    assert 0.1 < masked.float().mean() < 0.2
    assert (tokens[masked] == steps.MASK).all()
    assert (tokens[~masked] != steps.MASK).all()
    assert loss_of(workload.model(), Batch(tokens, targets), CPU).isfinite()
