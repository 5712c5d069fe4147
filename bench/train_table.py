"""The table of `train` with every case in full."""

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
    missing = settings.get("missing", {})
    return (
        "The same work for all, where a forward counts 1 and a backward 2. Means over "
        f"{settings['seeds']} seeds; bold: the best mean. Losses ({_units(results)}) and accuracy: "
        f"evaluation mode, mean over the last {settings['final_share']:.0%} of the work; "
        f"{settings['samples']}. {how_each_is_set(results)}"
        + (f" Left out: {'; '.join(f'{k} ({v})' for k, v in missing.items())}." if missing else "")
    )


def how_each_is_set(results: Results) -> str:
    """The optimizers' settings, and what their tuning was."""
    how = "; ".join(f"{name}: {what}" for name, what in results.settings["optimizers"].items())
    return (
        f"{how}. Runs to tune: runs of the same length that were spent on finding a learning rate"
        ", by validation loss, with a seed of their own."
    )


def _units(results: Results) -> str:
    """Nats, but for the problems that have another loss."""
    others: dict[str, list[str]] = {}
    for row in results.rows:
        if row.metric == "train_loss" and row.unit != "nats":
            title = results.settings["cases"][row.case]
            if title not in others.setdefault(row.unit, []):
                others[row.unit].append(title)
    said = [f"{unit} of the {' and the '.join(titles)}" for unit, titles in others.items()]
    return "; ".join(["nats", *said])
