"""The benchmarks' own arithmetic: work, statistics, tables, models and text."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import (
    plots,
    report,
    results,
    summary,
    tables,
    verdict,
)
from bench.method import Method
from bench.optimizers import FUSED_SALSA
from bench.others import ADAM
from bench.problems import digits_cnn, plays_gpt
from bench.sets import batches, plays
from bench.training import PLAIN_STEP, Problem, Work, train

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
        results.curve("demo", "digits", name, quantity, unit, work, values)
        for name in ("FusedSaLSa", "Adam")
        for quantity, unit in (("train_loss", "plain steps of work"), ("step_size", "steps"))
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
    text = report.with_blocks(MARKED, {"demo": lambda: "| new |\n"})
    assert text == "before\n<!-- demo:begin -->\n| new |\n<!-- demo:end -->\nafter\n"
    assert report.with_blocks(text, {"demo": lambda: "| new |\n"}) == text


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
        report.with_blocks(text, {"demo": lambda: ""})


def test_check_tells_and_writes_nothing(tmp_path, monkeypatch):
    from bench.__main__ import main

    made_up([0.1, 0.2], [0.3, 0.4]).write(tmp_path / "cpu" / "demo.json")
    monkeypatch.setattr(report, "PUBLISHED", tmp_path)
    monkeypatch.setattr(report, "BLOCKS", {"demo": lambda: report.demo_block(tmp_path)})
    file = tmp_path / "README.md"
    file.write_text(MARKED)
    assert main(["report", "--check", "--file", str(file)]) == 1
    assert file.read_text() == MARKED
    assert main(["report", "--file", str(file)]) == 0
    assert "| Digits | FusedSaLSa | **0.150**" in file.read_text()
    assert "| Digits | FusedSaLSa |" in (tmp_path / "cpu" / "RESULTS.md").read_text()
    assert main(["report", "--check", "--file", str(file)]) == 0
    (tmp_path / "cpu" / "RESULTS.md").write_text("by hand")
    assert main(["report", "--check", "--file", str(file)]) == 1


def test_the_readme_and_the_pages_say_what_the_results_say(capsys):
    from bench.__main__ import main

    assert main(["report", "--check"]) == 0, capsys.readouterr().err


def test_both_problems_of_the_demo_train():
    text = plays.encode(["to be or not to be, that is the question. " * 20])
    for problem in (digits_cnn(CPU, 2), plays_gpt(CPU, 2, text=lambda: text)):
        run = train(problem, ADAM, 0, CPU)
        assert len(run.losses) == 2
        assert run.checkpoints[-1].train_loss < run.checkpoints[0].train_loss
        assert problem.description
