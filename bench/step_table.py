"""The tables of `step` and `memory`: per model a row for every optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench.results import Results
from bench.tables import DASH, Cell, Section, Table


class Column(NamedTuple):
    title: str
    metric: str
    show: Callable[[float], str]


def _time(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


STEP_COLUMNS = (
    Column("ms", "time", _time),
    Column("to fused\nAdamW", "to_fused", lambda v: f"{v:.2f}"),
    Column("extra fwd.\nper step", "extra_forwards", lambda v: f"{v:.2f}" if v else "0"),
    Column("ms in\nstep()", "in_step", lambda v: f"{v:.2f}" if v < 1 else f"{v:.1f}"),
    Column("peak MB", "peak_memory", lambda v: f"{v:,.0f}"),
)
MEMORY_COLUMNS = (
    Column("peak MB", "peak_memory", lambda v: f"{v:,.0f}"),
    Column("to fused\nAdamW", "to_fused", lambda v: f"{v:.2f}"),
    Column("state, bytes\na parameter", "state", lambda v: f"{v:.1f}"),
)


def step_table(results: Results, *, full: bool = True) -> Table:
    """`full`: with what the columns beside the ratios mean."""
    settings = results.settings
    order = "in turn" if settings["in_turn"] else "one optimizer after the other"
    precision = f", {settings['autocast']} autocast" if settings["autocast"] else ", fp32"
    caption = (
        f"A whole training step{precision}; medians of {settings['rounds']} rounds {order}. "
        "FusedSaLSa and the authors' package: the mean over ten steps in a row, searches included, "
        "from the 21st step on, where the authors' package still searches in most steps (it gets "
        "rarer later). Ratios are taken within a round; those of a kind of step, which may have "
        "come only once, are to the median of all rounds." + _left_out(results)
    )
    if full:
        caption += (
            " ms in step(): the host's time in the optimizer's step without forward and backward. "
            "Peak: all that tensors take at once, weights and activations included."
        )
    return _table(results, STEP_COLUMNS, caption)


def memory_table(results: Results, *, full: bool = True) -> Table:
    """`full`: with what the columns beside the ratios mean."""
    caption = (
        "The most that tensors take at once in a training step: weights, gradients, optimizer "
        "state, activations and what the optimizer needs in between; small batches, where "
        "optimizers weigh most." + _left_out(results)
    )
    if full:
        caption += " State: what is kept from step to step."
    return _table(results, MEMORY_COLUMNS, caption)


def overview_table(table: Callable[..., Table], results: Results) -> Table:
    """For a page: of `table` only the ratios to fused AdamW, a column for every model."""
    cases: dict[str, str] = results.settings["cases"]
    of_cases = [dict.fromkeys(r.optimizer for r in results.rows if r.case == c) for c in cases]
    names = dict.fromkeys([*max(of_cases, key=len), *(n for names in of_cases for n in names)])
    ratio = Column("", "to_fused", lambda v: f"{v:.2f}")
    rows = {
        name: [_cell(results, case, name, ratio)._replace(spread="") for case in cases]
        for name in names
    }
    section = Section("fused AdamW", rows)
    return Table(
        tuple(cases.values()), [section], table(results, full=False).caption, ("relative to", "of")
    )


def _left_out(results: Results) -> str:
    missing = results.settings["missing"]
    if not missing:
        return ""
    return f" Left out: {'; '.join(f'{what} ({why})' for what, why in missing.items())}."


def _table(results: Results, columns: tuple[Column, ...], caption: str) -> Table:
    sections = []
    for case, title in results.settings["cases"].items():
        names = list(dict.fromkeys(row.optimizer for row in results.rows if row.case == case))
        rows = {name: [_cell(results, case, name, column) for column in columns] for name in names}
        sections.append(Section(title, rows))
    titles = tuple(column.title for column in columns)
    return Table(titles, sections, caption, ("model", "optimizer"))


def _cell(results: Results, case: str, name: str, column: Column) -> Cell:
    try:
        row = results.row(case, name, column.metric)
    except KeyError:
        return Cell(DASH)
    spread = ""
    if column.metric == "to_fused" and row.n > 1 and row.low != row.high:
        spread = f"{column.show(row.low)}{DASH}{column.show(row.high)}"
    return Cell(column.show(row.median), spread)
