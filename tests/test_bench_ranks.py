"""The table of all problems: ranks and ratios, against figures that were worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bench import ranks, results, tables
from bench.ranks import standings
from bench.results import Results
from bench.train_summary import ratio_table, show_ratio, summary_table
from bench.verdict import standing_verdict

# Two seeds of three optimizers on three problems.
LOSSES = {
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
    return Results(results.environment(torch.device("cpu")), rows, [], settings)


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
    rows = summary_table(made(losses)).sections[0].rows
    assert rows["Other"][0] == tables.Cell("3.0", "2 of 3 problems")
    assert ratio_table(made(losses)).sections[0].rows["Other"][1].text == tables.DASH


def test_the_first_is_the_reference_where_tuned_adamw_was_not_run():
    found = made()
    del found.settings["optimizers"]["AdamW, tuned"]
    assert ranks.reference(found) == "Ours" and ranks.reference(made()) == "AdamW, tuned"
    assert standing_verdict(found) == []


def test_a_problem_on_which_the_reference_diverged_has_no_ratio():
    losses = {**LOSSES, "b": {**LOSSES["b"], "AdamW, tuned": [math.nan, 0.1]}}
    found = standings(made(losses), "train_loss")
    assert list(found["Ours"].ratios) == ["a", "c"] and found["Ours"].ranks["b"] == 2


def test_the_summary_in_markdown():
    dash = tables.DASH
    lines = tables.to_markdown(summary_table(made())).splitlines()
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


def test_the_ratios_in_markdown():
    lines = tables.to_markdown(ratio_table(made())).splitlines()
    assert lines[0] == "| optimizer | a | b | c |"
    assert lines[2] == "| Ours | **0.50** | 4.00 | **1.00** |"
    assert lines[4] == "| Other | 2.00 | 2.00 | diverged |"


def test_a_table_of_many_columns_goes_on_below():
    cells = [tables.Cell(str(i)) for i in range(15)]
    titles = tuple(f"p{i}" for i in range(15))
    table = tables.Table(titles, [tables.Section("", {"Ours": cells})], "said", ("", "optimizer"))
    first, second, caption = tables.to_markdown(table).strip().split("\n\n")
    assert first.splitlines()[0] == f"| optimizer | {' | '.join(titles[:8])} |"
    assert second.splitlines()[0] == f"| optimizer | {' | '.join(titles[8:])} |"
    assert second.splitlines()[2].startswith("| Ours | 8 | 9 |") and caption == "said"


def test_the_verdict_says_where_ours_stands():
    assert standing_verdict(made()) == [
        "By mean rank Ours is 2nd of 3.",
        "Its training loss is lower than that of AdamW, tuned on 1 of 3 problems: A.",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0123, "0.012"), (0.5, "0.50"), (1.234, "1.23"), (12.34, "12.3"), (999.6, "1000"),
        (2.5e6, "2e6"), (math.inf, "diverged"), (math.nan, tables.DASH),
    ],
)  # fmt: skip
def test_ratios_keep_their_digits(value, shown):
    assert show_ratio(value) == shown
