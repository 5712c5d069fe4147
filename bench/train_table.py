"""The tables of `train`: every case in full, and one line per optimizer for a page."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from bench.results import Results, Row
from bench.tables import DASH, Cell, Section, Table, show_number

NOTHING = Cell(DASH)


class Column(NamedTuple):
    title: str
    metric: str
    show: Callable[[float], str]
    lower_is_better: bool | None = None  # None: nothing to win
    figure: str = "mean"
    spread: bool = False


def _loss(value: float) -> str:
    return show_number(value) if math.isfinite(value) else "diverged"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


TRAIN_LOSS = Column("training\nloss", "train_loss", _loss, True, spread=True)
ACCURACY = Column("validation\naccuracy %", "validation_accuracy", _percent, False, spread=True)
COLUMNS = (
    TRAIN_LOSS,
    Column("validation\nloss", "validation_loss", _loss, True, spread=True),
    ACCURACY,
    Column("extra fwd.\nper step", "extra_forwards", lambda v: f"{v:.2f}" if v else "0"),
    Column("s per\nrun", "train_time", lambda v: f"{v:.0f}" if v >= 10 else f"{v:.1f}"),
    Column("runs to\ntune", "tuning_runs", lambda v: f"{v:.0f}"),
)


def train_table(results: Results) -> Table:
    """Per case and optimizer: means over the seeds, with the lowest and the highest."""
    sections = []
    for case, title in results.settings["cases"].items():
        names = _names(results, case)
        rows = {
            name: [_cell(results, case, name, names, column) for column in COLUMNS]
            for name in names
        }
        sections.append(Section(title, rows))
    return Table(tuple(column.title for column in COLUMNS), sections, _caption(results))


def overview_table(results: Results) -> Table:
    """For a page: the training loss in every case, the accuracy where a model is fine-tuned."""
    cases: dict[str, str] = results.settings["cases"]
    shown = [(case, f"{title}:\ntraining loss", TRAIN_LOSS) for case, title in cases.items()]
    tuned = [case for case in cases if "pretrained" in results.settings["descriptions"][case]]
    shown += [(case, f"{cases[case]}:\naccuracy %", ACCURACY) for case in tuned]
    rows = {}
    for name in results.settings["optimizers"]:
        cells = []
        for case, _, column in shown:
            names = _names(results, case)
            cell = _cell(results, case, name, names, column) if name in names else NOTHING
            cells.append(cell)
        runs = [row.mean for row in results.rows if _is_tuning(row, name)]
        rows[name] = [*cells, Cell(f"{max(runs):.0f}" if runs else "0")]
    titles = (*(title for _, title, _ in shown), "runs to\ntune")
    section = Section(f"{results.settings['seeds']} seeds", rows)
    return Table(titles, [section], _caption(results), ("mean of", "optimizer"))


def _is_tuning(row: Row, name: str) -> bool:
    return (row.optimizer, row.metric) == (name, "tuning_runs")


def _names(results: Results, case: str) -> list[str]:
    return list(dict.fromkeys(row.optimizer for row in results.rows if row.case == case))


def _cell(results: Results, case: str, name: str, names: list[str], column: Column) -> Cell:
    found = [row for row in results.rows if (row.case, row.metric) == (case, column.metric)]
    own = [row for row in found if row.optimizer == name]
    if not own:
        return Cell("0") if column.metric == "tuning_runs" else NOTHING
    (row,) = own
    low, high = column.show(row.low), column.show(row.high)
    spread = f"{low}{DASH}{high}" if column.spread and low != high else ""
    return Cell(column.show(getattr(row, column.figure)), spread, _is_best(row, found, column))


def _is_best(row: Row, rows: list[Row], column: Column) -> bool:
    """The best mean of all; whether by more than the seeds differ, the spread tells."""
    if column.lower_is_better is None or not math.isfinite(row.mean):
        return False
    means = [other.mean for other in rows if math.isfinite(other.mean)]
    return row.mean == (min(means) if column.lower_is_better else max(means))


def _caption(results: Results) -> str:
    settings = results.settings
    how = "; ".join(f"{name}: {what}" for name, what in settings["optimizers"].items())
    missing = settings.get("missing", {})
    return (
        "The same work for all, where a forward counts 1 and a backward 2. Means over "
        f"{settings['seeds']} seeds; bold: the best mean. Losses (nats) and accuracy: evaluation "
        f"mode, mean over the last {settings['final_share']:.0%} of the work; {settings['samples']}"
        f". {how}. Runs to tune: runs of the same length that were spent on finding a learning rate"
        ", by validation loss, with a seed of their own."
        + (f" Left out: {'; '.join(f'{k} ({v})' for k, v in missing.items())}." if missing else "")
    )
