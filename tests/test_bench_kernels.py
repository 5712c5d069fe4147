"""The timings' own arithmetic: rounds, ratios, tables, and what is said of what is missing."""

from __future__ import annotations

import io
import sys
from argparse import Namespace

import pytest
import torch
from rich.console import Console

from bench import gpu_kernels, host, kernel_table, kernels, report, results, tables
from bench.results import Results
from bench.shapes import Shapes
from salsa_fused import FusedSaLSa

CPU = torch.device("cpu")


def test_kernels_are_timed_in_turn_and_compared_within_a_round():
    order = []
    timed = [
        kernels.Timed(kernels.COPY, 8, lambda: order.append("copy")),
        kernels.Timed(kernels.FUSED, 28, lambda: order.append("fused")),
        kernels.Timed(kernels.FOREACH, 28, lambda: order.append("seldom"), every=2),
    ]
    seconds = kernels.measure(timed, rounds=4, cold=True)
    assert order[:3] == ["copy", "fused", "seldom"]  # the warm-up
    assert order[3:6] == ["copy", "fused", "seldom"] and order[6:8] == ["fused", "copy"]
    assert [value is None for value in seconds[kernels.FOREACH]] == [False, True, False, True]

    seconds = {kernels.COPY: [1.0, 2.0], kernels.FUSED: [2.0, 8.0], kernels.FOREACH: [1.0, None]}
    rows = {(r.optimizer, r.metric): r for r in kernels.rows_of("c", 10**9, timed, seconds)}
    seldom = rows[kernels.FOREACH, "to_fused"]
    assert (seldom.median, seldom.n) == (0.5, 1)
    assert rows[kernels.FUSED, "to_foreach"].median == 2.0
    assert rows[kernels.COPY, "to_fused"].median == pytest.approx(0.375)
    assert rows[kernels.COPY, "bandwidth"].median == pytest.approx(6.0)
    assert rows[kernels.FUSED, "of_copy"].median == pytest.approx((14 / 8 + 3.5 / 4) / 2)


def test_every_kernel_runs_on_a_small_model(monkeypatch):
    monkeypatch.setattr(kernels, "TENSORS", 3)
    timed = kernels.everything(300)
    for one in timed:
        one.call()
    assert {"first_trial", "next_trial", "alignment", "a plain step"} <= {one.name for one in timed}


def test_kernels_table():
    rows = [
        results.timed_row("kernels", "large", name, metric, "1", [1.0, 2.0, 3.0])
        for name in ("copy", "first_trial")
        for metric in ("time", "bandwidth", "of_copy", "to_fused")
    ]
    settings = {"cases": ["large"], "tensors": 150, "rounds": 3}
    text = tables.to_markdown(kernel_table.kernels_table(Results({}, rows, settings=settings)))
    assert "| model | what | ms | GB/s | of a copy's | time to fused Adam's |" in text
    assert f"| large | first_trial | 2.00 | 2 | 2.00 | 2.00 (1.20{tables.DASH}2.80) |" in text


def test_ratios_table():
    rows = [
        results.timed_row("kernels", case, name, "to_fused", "1", [value])
        for case, value in (("large", 0.5), ("small", 0.25))
        for name in ("copy", "first_trial")
    ]
    settings = {"cases": ["large", "small"], "tensors": 150, "rounds": 3}
    text = tables.to_markdown(kernel_table.ratios_table(Results({}, rows, settings=settings)))
    assert "| torch's fused Adam | first_trial | 0.50 | 0.25 |" in text


# -- kernels on a GPU, and the host -----------------------------------------------------------


def test_shapes_are_those_of_the_models():
    sizes = {shapes().title: (shapes().size, len(shapes().shapes)) for shapes in gpu_kernels.MODELS}
    assert sizes == {  # as their papers and checkpoints have them
        "BERT-base, fp32": (109_482_240, 199),
        "GPT-2 XL, fp32": (1_557_611_200, 580),
        "Llama 7B, bf16": (6_738_415_616, 291),
    }


def test_gpu_kernels_are_measured_and_what_is_missing_is_reported(monkeypatch):
    """On the CPU, with the C++ kernels: the clock differs, nothing else."""
    monkeypatch.setattr(gpu_kernels, "FLUSH_BYTES", 1 << 16)
    monkeypatch.setattr(gpu_kernels, "_compiled", lambda weights: 1 / 0)
    monkeypatch.setitem(sys.modules, "salsa.SaLSA", None)  # the peer is not installed
    tiny = [lambda: Shapes("tiny", torch.bfloat16, [(30, 10), (7,)])]
    console = Console(file=io.StringIO())
    found = gpu_kernels.run(tiny, CPU, 3, ["native"], console)
    (case,) = found.settings["cases"]
    skipped = found.settings["skipped"]
    assert "ZeroDivisionError" in skipped[f"{case}: torch AdamW, compiled"]
    assert "salsa" in skipped[f"{case}: authors' package, a search step"]
    names = {row.optimizer for row in found.rows}
    assert {
        "first_trial, native",
        "alignment, native",
        "a plain step, native",
        "a search step, native",
    } <= names
    own = {row.metric: row for row in found.rows if row.optimizer == "next_trial, native"}
    assert own["bandwidth"].n == 3 and own["to_fused"].median > 0.0
    text = tables.to_markdown(kernel_table.gpu_kernels_table(found))
    assert "| next_trial, native |" in text and "Left out: " in text


def test_bytes_of_a_parameter():
    """What interface.py says that the kernels move."""
    wanted = {"copy": 8, "first_trial": 20, "next_trial": 16, "adam_step": 28, "alignment": 12}
    assert wanted.items() <= gpu_kernels.bytes_of(torch.float32).items()
    assert gpu_kernels.bytes_of(torch.bfloat16)["adam_step"] == 22


def test_a_gpu_without_room_is_reported(monkeypatch):
    def full(*arguments, **keywords):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "empty", full)
    (only,) = gpu_kernels.measure(Shapes("big", torch.float32, [(10,)]), CPU, 1, [])
    assert only.reason == "no room for weights and gradients"


def test_the_host_is_timed_without_launches(tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(host, "TENSORS", 3)
    file = tmp_path / "host.json"
    arguments = Namespace(device="cpu", rounds=4, json=file)
    assert host.main(arguments) == 0
    found = Results.read(file)
    assert found.row("stay", host.ADAM, "to_fused").median == 1.0
    assert found.row("move", host.OURS, "time").median > 0.0
    assert "copies and launches left out of both" in host.host_table(found).caption
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = FusedSaLSa([weight], search_period=None)
    optimizer.step()
    assert weight[0] != 1.0  # the launches are there again
    assert optimizer._table.launches[0].backend.name == "native"


def test_the_gpu_block_says_what_was_not_measured(tmp_path):
    assert "not measured yet" in report.gpu_block(tmp_path)
    rows = [
        results.timed_row("kernels", "m", "copy", metric, "1", [2.0])
        for metric in ("time", "bandwidth", "of_copy", "to_fused", "launches")
    ]
    environment = {"kind": "gpu", "device": "NVIDIA X", "torch": "2", "triton": "3", "commit": "c"}
    environment["command"] = "python -m bench kernels --device cuda"
    settings = {"cases": ["m"], "rounds": 1, "skipped": {}}
    Results(environment, rows, settings=settings).write(tmp_path / "x" / "kernels.json")
    text = report.gpu_block(tmp_path)
    assert "| m | copy | 2.00 | 2 | 2.00 | 2.00 | 2 |" in text
    assert "Measured on NVIDIA X, torch 2, Triton 3, c: `python -m bench kernels" in text
