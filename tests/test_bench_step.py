"""Timed steps and peak memory: rounds, kinds of steps, and what tensors take at once."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from dataclasses import replace
from functools import partial

import pytest
import torch
from rich.console import Console
from torch import nn

from bench import memory, peers, report, step, step_table, tables, workloads
from bench.optimizers import fused_salsa
from bench.others import adamw, authors_salsa
from bench.peak import peak_memory
from bench.results import Results
from bench.sets.batches import Batch
from bench.steps import PLAIN, Stepper
from bench.workloads import Workload, loss_of

CPU = torch.device("cpu")
MB = 1_000_000


def tiny(width: int = 8) -> Workload:
    def batches(generator):
        while True:
            x = torch.randn(4, width, generator=generator)
            yield Batch(x, (x.sum(1) > 0).long())

    model = partial(nn.Linear, width, 2)
    return Workload("tiny", "Tiny", model, batches, f"4 x {width}")


def heavy() -> Workload:
    """200,200 parameters, and next to nothing else."""
    model = partial(nn.Linear, 1000, 200)
    return replace(tiny(1000), model=model)


# --- peak memory ----------------------------------------------------------------------------------


def test_peak_memory_is_what_tensors_take_at_once():
    def run():
        first = torch.empty(4 * MB, dtype=torch.int8)
        second = torch.empty(2 * MB, dtype=torch.int8)
        del first
        third = torch.empty(3 * MB, dtype=torch.int8)
        return second, third

    assert peak_memory(run, CPU) == pytest.approx(6 * MB, rel=0.01)


def test_the_state_of_adam_is_eight_bytes_a_parameter():
    kept: list[float] = []
    method = adamw("AdamW", "", 1e-3, fused=True)
    peak = peak_memory(partial(memory._settle, heavy(), method, CPU, kept), CPU)
    assert kept[0] == pytest.approx(8.0, abs=0.01)
    assert 16 * 200_200 <= peak < 17 * 200_200


@pytest.mark.parametrize("look_back, tensors", [(False, 1), (None, 2)])
def test_fused_salsa_takes_the_saved_weights_and_the_windows_start_and_no_more(look_back, tensors):
    method = fused_salsa(look_back=look_back)
    ours = peak_memory(partial(memory.settled, heavy(), method, CPU), CPU)
    fused = adamw("AdamW", "", 1e-3, fused=True)
    theirs = peak_memory(partial(memory.settled, heavy(), fused, CPU), CPU)
    assert 0 <= ours - theirs < 4.1 * tensors * 200_200  # in fp32


# --- steps ----------------------------------------------------------------------------------------


def test_a_step_with_a_search_is_told_apart_from_a_plain_one():
    stepper = Stepper.build(tiny(), fused_salsa(search_period=4), CPU)
    kinds = [stepper.step_and_kind()[1] for _ in range(30)]
    assert all(kind != PLAIN for kind in kinds[:10])  # the first ten all search
    assert kinds[10:].count(PLAIN) == 15
    plain = Stepper.build(tiny(), adamw(), CPU)
    assert {plain.step_and_kind()[1] for _ in range(5)} == {PLAIN}


def test_all_methods_see_the_same_batches_and_weights():
    ours = Stepper.build(tiny(), fused_salsa(), CPU)
    theirs = Stepper.build(tiny(), adamw(), CPU)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(next(ours.batches).inputs, next(theirs.batches).inputs)


def test_the_time_in_step_leaves_out_the_closure(monkeypatch):
    import time

    stepper = Stepper.build(tiny(), fused_salsa(search_period=1), CPU)
    forward = stepper.model.forward

    def slow(x):
        time.sleep(0.05)
        return forward(x)

    monkeypatch.setattr(stepper.model, "forward", slow)
    stepper.seconds_in_step()  # the first search looks for the order of magnitude
    assert min(stepper.seconds_in_step() for _ in range(3)) < 0.04


def test_the_authors_time_in_step_cannot_be_told_apart():
    pytest.importorskip("salsa", reason="the authors' package is not installed")
    assert Stepper.build(tiny(), authors_salsa(), CPU).seconds_in_step() is None


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def tiny_workloads(monkeypatch):
    monkeypatch.setattr(step, "ON_CPU", (tiny,))
    monkeypatch.setattr(memory, "REAL_SIZES", (partial(tiny, 1000),))
    monkeypatch.setattr(step, "compiled_adamw", partial(adamw, "AdamW, compiled"))  # slow to build
    methods = [make for make in step.METHODS if make is not METHODS_COMPILED]
    monkeypatch.setattr(step, "METHODS", methods)
    monkeypatch.setattr(peers, "FOLDER", peers.FOLDER / "nowhere")
    monkeypatch.setitem(sys.modules, "prodigyopt", None)


METHODS_COMPILED = step.METHODS[2]


def test_step_writes_rows_a_table_and_a_plot(tiny_workloads, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step.measure, "__defaults__", (step.METHODS,))
    arguments = Namespace(device="cpu", rounds=2, json=tmp_path / "step.json")
    assert step.main(arguments) == 0
    found = Results.read(arguments.json)
    assert found.row("tiny", step.FUSED, "to_fused").median == 1.0
    ours = found.row("tiny", step.OURS, "extra_forwards").median
    assert 0.0 < ours <= 1.5
    assert found.row("tiny", f"{step.OURS}: {PLAIN}", "time").median > 0.0
    assert "Tiny: Prodigy" in found.settings["missing"]
    text = tables.to_markdown(step_table.step_table(found))
    assert "| Tiny, 0.0 M parameters, batch 4 x 8 | AdamW, fused |" in text
    assert "Left out: Tiny: Prodigy" in text
    ratios = tables.to_markdown(step_table.overview_table(step_table.step_table, found))
    assert "| fused AdamW | AdamW, fused | 1.00 |" in ratios
    assert {path.name for path in report.draw(tmp_path)} == {"step.png", "step.svg"}
    assert "python -m bench data" in capsys.readouterr().out.replace("\n", " ")


def test_memory_writes_rows_and_a_table(tiny_workloads, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "METHODS", step.METHODS)
    arguments = Namespace(device="cpu", json=tmp_path / "memory.json")
    assert memory.main(arguments) == 0
    found = Results.read(arguments.json)
    assert found.row("tiny", step.OURS, "to_fused").median >= 1.0
    assert found.row("tiny", step.FUSED, "state").median == pytest.approx(8.0, abs=0.1)
    assert "| AdamW, fused |" in tables.to_markdown(step_table.memory_table(found))


def test_what_fails_is_reported_and_the_rest_goes_on():
    def broken():
        method = adamw("broken")
        return step.Method("broken", "", lambda model: 1 / 0, method.step, method.step_size)

    missing: dict[str, str] = {}
    console = Console(file=io.StringIO())
    makes = [broken, partial(adamw, step.FUSED, fused=True)]
    found = step.measure(tiny(), CPU, 1, console, missing, makes)
    assert [one.name for one in found] == [step.FUSED]
    assert missing == {"Tiny: broken": "division by zero"}


# --- workloads ------------------------------------------------------------------------------------


def test_every_workload_says_what_it_is():
    every = [make() for make in (*workloads.ON_CPU, *workloads.REAL_SIZES, *workloads.ON_GPU)]
    for workload in every:
        assert f"{workload.title}, " in workload.describe()
    sizes = {one.title: one.describe() for one in every}
    assert "25.6 M" in sizes["ResNet-50"] and "1,557.6 M" in sizes["GPT-2 XL"]


def test_images_and_text_can_be_learnt(monkeypatch):
    from bench.sets.plays import encode

    text = encode(["to be or not to be, that is the question. " * 40])
    monkeypatch.setattr(workloads, "plays", lambda: text)
    images = workloads._images("I", partial(workloads.resnet18), batch=2, side=32)
    words = workloads._llama("L", workloads.TINY, batch=2, time=16)
    for workload in (images, words):
        stepper = Stepper.build(workload, adamw(), CPU)
        batch = next(stepper.batches)
        before = loss_of(stepper.model, batch, CPU).item()
        stepper.batches = iter([batch] * 6)
        for _ in range(6):
            stepper.step()
        assert loss_of(stepper.model, batch, CPU).item() < before


def test_one_word_in_seven_is_masked(monkeypatch):
    rows = torch.randint(200, 300, (40, 30))
    monkeypatch.setattr(workloads, "reviews", lambda: (Batch(rows, rows[:, 0]), None))
    size = workloads.BertSize(vocabulary=400, width=16, layers=1, heads=2, inner=32)
    workload = workloads._masked("B", size, batch=16, time=32)
    tokens, targets = next(workload.batches(torch.Generator().manual_seed(0)))
    masked = targets != workloads.IGNORED
    assert 0.1 < masked.float().mean() < 0.2
    assert (tokens[masked] == workloads.MASK).all()
    assert (tokens[~masked] != workloads.MASK).all()
    loss = loss_of(workload.model(), Batch(tokens, targets), CPU)
    assert loss.isfinite()
