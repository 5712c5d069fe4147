"""What is made of results: statistics, tables, ranks, plots, and the pages that show them."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from bench import plots, ranks, report, results, tables
from bench.__main__ import main
from bench.ranks import ratio_table, show_ratio, standings, summary_table
from bench.results import Results
from bench.tables import Cell, Table, by_case, overview, to_markdown

CPU = torch.device("cpu")


# --- statistics -----------------------------------------------------------------------------------


def test_row_statistics():
    row = results.row("demo", "case", "Adam", "train_loss", "nats", [3.0, 1.0, 8.0])
    assert (row.median, row.low, row.high, row.n, row.mean) == (3.0, 1.0, 8.0, 3, 4.0)
    assert row.values == [3.0, 1.0, 8.0]
    with pytest.raises(ValueError, match="no median"):
        results.row("demo", "case", "Adam", "train_loss", "nats", [])


def test_a_curve_takes_the_shortest_series_and_few_points():
    series = [[float(i) for i in range(1000)], [2.0 * i for i in range(900)]]
    curve = results.curve("demo", "c", "o", "q", "steps", range(1000), series, points=100)
    assert len(curve.x) == 100
    assert (curve.x[1], curve.low[1], curve.mean[1], curve.high[1]) == (9, 9.0, 13.5, 18.0)
    assert max(curve.x) < 900


# --- tables and plot ----------------------------------------------------------------------


def demo(ours: list[float], theirs: list[float]) -> Results:
    rows = []
    for name, losses in (("FusedSaLSa", ours), ("Adam", theirs)):
        figures = {
            "train_loss": losses,
            "validation_loss": [loss + 0.5 for loss in losses],
            "validation_accuracy": [0.9],
            "extra_forwards": [0.1 if name == "FusedSaLSa" else 0.0],
            "step_time": [2.0],
            "final_step_size": [1e-3],
            "steps": [100.0],
        }
        for metric, values in figures.items():
            rows.append(results.row("demo", "digits", name, metric, "nats", values))
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
    return Results(results.environment(CPU), rows, curves, settings)


def test_results_survive_their_file(tmp_path):
    written = demo([0.1, 0.2], [0.3, math.nan])
    written.write(tmp_path / "demo.json")
    found, text = Results.read(tmp_path / "demo.json"), (tmp_path / "demo.json").read_text()
    assert (found.curves, found.settings) == (written.curves, written.settings)
    assert math.isnan(found.rows_of("digits", "train_loss")["Adam"].values[1])
    assert '"schema": 1' in text and "NaN" not in text
    assert text.count("\n") > len(written.rows)  # a row a line


def test_markdown_table_marks_what_is_better_in_every_seed():
    lines, dash = to_markdown(by_case(demo([0.1, 0.2], [0.3, 0.4]))).splitlines(), tables.DASH
    assert lines[0].startswith("| problem | optimizer | training loss | validation loss |")
    assert lines[2].startswith(f"| Digits | FusedSaLSa | **0.150** (0.100{dash}0.200) |")
    assert lines[3].startswith(f"| Digits | Adam | 0.350 (0.300{dash}0.400) |")
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "| steps | last step size |" in lines[0] and "| 100 | 0.0010 |" in lines[2]
    assert lines[4] == "" and "lr=1e-3" in lines[5]
    assert "**" not in to_markdown(by_case(demo([0.1, 0.5], [0.3, 0.4])))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.4963, "2.496"), (0.1, "0.100"), (0.02, "0.020"), (0.00123, "0.0012"), (0.000123, "1.2e-4")],
)
def test_small_numbers_keep_two_digits_however_small(value, shown):
    assert tables.show_number(value) == shown


def timed(bench: str, metrics: list[str], values: list[float], **settings) -> Results:
    rows = []
    for case, factor in (("large", 2.0), ("small", 1.0)):
        found = {(metric, "1"): [factor * value for value in values] for metric in metrics}
        for name in ("copy", "first_trial"):
            rows += results.timed_rows(bench, case, name, found)
    settings = {"cases": ["large", "small"], "tensors": 150, "rounds": 3, **settings}
    return Results({"kind": "cpu"}, rows, settings=settings)


def test_the_kernels_table_and_its_overview():
    found = timed("kernels", ["time", "bandwidth", "of_copy", "to_fused"], [0.5, 1.0, 1.5])
    text = to_markdown(by_case(found))
    assert "| model | what | ms | GB/s | of a copy's | time to fused Adam's |" in text
    assert f"| large | first_trial | 2.00 | 2 | 2.00 | 2.00 (1.20{tables.DASH}2.80) |" in text
    assert "GB/s counts" in text and "alignment" not in text
    ratios = to_markdown(overview(found))
    assert "| torch's fused Adam | first_trial | 2.00 | 1.00 |" in ratios
    assert "GB/s counts" not in ratios


def test_a_table_of_many_columns_goes_on_below():
    cells = [Cell(str(i)) for i in range(15)]
    titles = tuple(f"p{i}" for i in range(15))
    table = Table(titles, {("Ours",): cells}, "said", ("optimizer",))
    first, second, caption = to_markdown(table).strip().split("\n\n")
    assert first.splitlines()[0] == f"| optimizer | {' | '.join(titles[:8])} |"
    assert second.splitlines()[0] == f"| optimizer | {' | '.join(titles[8:])} |"
    assert second.splitlines()[2].startswith("| Ours | 8 | 9 |") and caption == "said"


def test_the_plot_is_drawn_from_the_data(tmp_path):
    demo([0.1, 0.2], [0.3, 0.4]).write(tmp_path / "demo.json")
    (path,) = plots.draw(tmp_path)
    drawn = path.read_bytes()
    assert path.name == "demo.png" and drawn.startswith(b"\x89PNG")
    assert plots.draw(tmp_path) == [path] and path.read_bytes() == drawn


# --- ranks and ratios, against figures that were worked out by hand -------------------------------

LOSSES = {  # two seeds of three optimizers on three problems
    "a": {"Ours": [1.0, 3.0], "AdamW, tuned": [2.0, 6.0], "Other": [8.0, 8.0]},
    "b": {"Ours": [0.4, 0.4], "AdamW, tuned": [0.1, 0.1], "Other": [0.2, 0.2]},
    "c": {"Ours": [5.0, 5.0], "AdamW, tuned": [5.0, 5.0], "Other": [math.nan, 5.0]},
}


def made(losses: dict[str, dict[str, list[float]]] = LOSSES) -> Results:
    rows = [
        results.row("train", case, name, metric, "nats", [factor * value for value in values])
        for case, found in losses.items()
        for name, values in found.items()
        for metric, factor in (("train_loss", 1.0), ("validation_loss", 2.0))
    ]
    rows.append(results.row("train", "a", "AdamW, tuned", "tuning_runs", "1", [7.0]))
    settings = {
        "cases": {case: case.upper() for case in losses},
        "optimizers": {"Ours": "none", "AdamW, tuned": "of 7", "Other": "some"},
        "seeds": 2,
        "final_share": 0.2,
    }
    return Results(results.environment(CPU), rows, [], settings)


def test_ranks_and_ratios_by_hand():
    found = standings(made(), "train_loss")
    # means: a: 2, 4, 8; b: 0.4, 0.1, 0.2; c: 5, 5, not a number
    assert found["Ours"].ranks == {"a": 1, "b": 3, "c": 1.5}
    assert found["AdamW, tuned"].ranks == {"a": 2, "b": 1, "c": 1.5}
    assert found["Other"].ranks == {"a": 3, "b": 2, "c": 3}
    assert found["Ours"].mean_rank == pytest.approx(5.5 / 3)
    assert found["Ours"].ratios == pytest.approx({"a": 0.5, "b": 4.0, "c": 1.0})
    assert found["Ours"].ratio == pytest.approx(2 ** (1 / 3))  # 0.5 * 4 * 1
    assert found["Ours"].worst == ("b", pytest.approx(4.0))
    # its seeds over the reference's means 4, 0.1, 5: 0.25 * 4 * 1, and 0.75 * 4 * 1
    assert found["Ours"].by_seed == pytest.approx((1.0, 3 ** (1 / 3)))
    assert found["AdamW, tuned"].ratio == pytest.approx(1.0)
    assert found["AdamW, tuned"].by_seed == pytest.approx((0.5 ** (1 / 3), 1.5 ** (1 / 3)))


def test_what_diverged_is_last_and_counts_as_the_cap():
    other = standings(made(), "train_loss")["Other"]
    assert other.worst == ("c", math.inf)
    assert other.ratio == pytest.approx((2 * 2 * 1000) ** (1 / 3))
    assert other.by_seed == pytest.approx((other.ratio, (2 * 2 * 1) ** (1 / 3)))


def test_losses_of_nothing_have_a_ratio():
    assert ranks.ratio(0.0, 0.0) == 1.0
    assert ranks.ratio(1e-9, 0.0) == pytest.approx(1e3)
    assert ranks.geometric_mean([1e9, 1e-3]) == pytest.approx(1.0)


def test_a_problem_that_one_is_missing_in_counts_for_the_others():
    losses = {case: dict(found) for case, found in LOSSES.items()}
    del losses["b"]["Other"]
    found = standings(made(losses), "train_loss")
    assert found["Other"].ranks == {"a": 3, "c": 3} and len(found["Other"].ratios) == 2
    assert found["Ours"].ranks["b"] == 2
    assert summary_table(made(losses)).rows["Other",][0] == Cell("3.0", "2 of 3 problems")
    assert ratio_table(made(losses)).rows["Other",][1].text == tables.DASH


def test_the_first_is_the_reference_where_tuned_adamw_was_not_run():
    found = made()
    del found.settings["optimizers"]["AdamW, tuned"]
    assert ranks.reference(found) == "Ours" and ranks.reference(made()) == "AdamW, tuned"


def test_a_problem_on_which_the_reference_diverged_has_no_ratio():
    losses = {**LOSSES, "b": {**LOSSES["b"], "AdamW, tuned": [math.nan, 0.1]}}
    found = standings(made(losses), "train_loss")
    assert list(found["Ours"].ratios) == ["a", "c"] and found["Ours"].ranks["b"] == 2


def test_the_summary_and_the_ratios_in_markdown():
    dash = tables.DASH
    lines = to_markdown(summary_table(made())).splitlines()
    assert lines[0] == (
        "| optimizer | training mean rank | training ratio | training worst "
        "| validation mean rank | validation ratio | runs to tune |"
    )
    assert lines[2] == (
        f"| Ours | 1.8 | 1.26 (1.00{dash}1.44) | 4.00 (b) | 1.8 | 1.26 (1.00{dash}1.44) | 0 |"
    )
    assert lines[3] == (
        f"| AdamW, tuned | **1.5** | **1.00** (0.79{dash}1.14) | 1.00 "
        f"| **1.5** | **1.00** (0.79{dash}1.14) | 7 |"
    )
    assert f"| Other | 2.7 | 15.9 (1.59{dash}15.9) | diverged (c) |" in lines[4]
    assert "counts as 1e-12" in lines[6] and "counts as 1000" in lines[6]
    lines = to_markdown(ratio_table(made())).splitlines()
    assert lines[0] == "| optimizer | a | b | c |"
    assert lines[2] == "| Ours | **0.50** | 4.00 | **1.00** |"
    assert lines[4] == "| Other | 2.00 | 2.00 | diverged |"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0123, "0.012"), (0.5, "0.50"), (1.234, "1.23"), (12.34, "12.3"), (999.6, "1000"),
        (2.5e6, "2e6"), (math.inf, "diverged"), (math.nan, tables.DASH),
    ],
)  # fmt: skip
def test_ratios_keep_their_digits(value, shown):
    assert show_ratio(value) == shown


# --- pages ----------------------------------------------------------------------------------------

MARKED = "before\n<!-- demo:begin -->\nold\n<!-- demo:end -->\nafter\n"


def test_a_block_is_made_anew_and_the_rest_stays():
    text = report.with_blocks(MARKED, {"demo": "| new |\n"})
    assert text == "before\n<!-- demo:begin -->\n| new |\n<!-- demo:end -->\nafter\n"
    assert report.with_blocks(text, {"demo": "| new |\n"}) == text


@pytest.mark.parametrize(
    "text",
    [
        MARKED.replace("demo", "other"),
        MARKED.replace("<!-- demo:end -->", ""),
        MARKED.replace("begin", "other").replace("end", "begin").replace("other", "end"),
        MARKED + MARKED,
        "no markers at all",
    ],
)
def test_markers_that_do_not_fit_are_errors(text):
    with pytest.raises(SystemExit, match=r"markers of \['demo'\], once each"):
        report.with_blocks(text, {"demo": ""})


def test_check_tells_and_writes_nothing(tmp_path, monkeypatch):
    demo([0.1, 0.2], [0.3, 0.4]).write(tmp_path / "cpu" / "demo.json")
    demo([0.1, 0.2], [0.3, 0.4]).write(tmp_path / "local" / "demo.json")  # is not published
    monkeypatch.setattr(report, "PUBLISHED", tmp_path)
    monkeypatch.setattr(report, "BLOCKS", {"demo": report.BLOCKS["demo"]})
    file = tmp_path / "README.md"
    file.write_text(MARKED)
    other = tmp_path / "other.md"
    other.write_text("no tables here")
    monkeypatch.setattr(report, "PAGES", [file, other])
    check = partial(main, ["report", "--check"])
    assert check() == 1 and file.read_text() == MARKED
    assert main(["report"]) == 0
    assert file.read_text().count("| Digits | FusedSaLSa | **0.150**") == 1
    assert "| Digits | FusedSaLSa |" in (tmp_path / "cpu" / "RESULTS.md").read_text()
    assert check() == 0 and other.read_text() == "no tables here"
    (tmp_path / "cpu" / "RESULTS.md").write_text("by hand")
    assert check() == 1


def test_the_pages_say_what_the_results_say(capsys):
    assert main(["report", "--check"]) == 0, capsys.readouterr().err


def test_figures_in_the_text_are_those_of_the_results():
    """Not only tables: what README and FAQ say in their own words."""
    cpu = results.REPOSITORY / "bench" / "results" / "cpu"
    readme, faq = ((results.REPOSITORY / page).read_text() for page in ("README.md", "docs/faq.md"))
    train = Results.read(cpu / "train.json")
    found = standings(train, "train_loss")
    plain, told = found["FusedSaLSa"], found["FusedSaLSa, total_steps"]
    assert f"its training loss is {plain.ratio:.2f} times that of AdamW" in " ".join(readme.split())
    assert f"AdamW at 1e-3 has {found['AdamW'].ratio:.2f} times" in readme
    assert f"Told the number of steps, it has {told.ratio:.2f} times" in readme
    behind, of_told = (sum(ratio > 1.0 for ratio in one.ratios.values()) for one in (plain, told))
    said = f"lower training loss on {behind} of the {len(plain.ratios)} problems ({of_told} with"
    assert said in " ".join(readme.split()).replace("`", "")
    assert (
        f"on {behind} of our {len(plain.ratios)} problems" in faq and f"on {of_told} where" in faq
    )
    extra = [
        row.mean
        for row in train.rows
        if row.metric == "extra_forwards"
        and row.optimizer in ("FusedSaLSa", "FusedSaLSa, total_steps")
    ]
    low, high = (round(100 * end(extra) / 3) for end in (min, max))
    assert f"{low} to {high} % more forward and backward work" in readme
    step = Results.read(cpu / "step.json")
    times = {
        name: [r.median for r in step.rows if (r.optimizer, r.metric) == (name, "to_fused")]
        for name in ("FusedSaLSa", "FusedSaLSa: a plain step")
    }
    low, high = (f"{end(times['FusedSaLSa']):.2f}" for end in (min, max))
    assert f"{low} to {high} times as long as with fused AdamW" in " ".join(readme.split())
    low, high = (f"{end(times['FusedSaLSa: a plain step']):.2f}" for end in (min, max))
    assert f"a step without a search {low} to {high}" in faq


def test_the_gpu_block_says_what_was_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PUBLISHED", tmp_path)
    assert "not measured yet" in report.block("gpu")
    metrics = ["time", "bandwidth", "of_copy", "to_fused"]
    found = timed("kernels", metrics, [1.0], missing={"m: big": "no room"})
    found.environment.update(kind="gpu", device="NVIDIA X", torch="2", triton="3", commit="c")
    found.environment["command"] = "python -m bench kernels --device cuda"
    found.write(tmp_path / "x" / "kernels.json")
    text = report.block("gpu")
    assert "| large | copy | 2.00 | 2 | 2.00 | 2.00 |" in text
    assert "Left out: m: big (no room)." in text
    assert "Measured on NVIDIA X, torch 2, Triton 3, c: `python -m bench kernels" in text
