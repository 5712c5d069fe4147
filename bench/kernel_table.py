"""The kernels' table: per model and number of threads, a row for everything that was timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench.results import Results
from bench.tables import Cell, Section, Table


class Column(NamedTuple):
    title: str
    metric: str
    show: Callable[[float], str]


def show_time(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


COLUMNS = (
    Column("ms", "time", show_time),
    Column("GB/s", "bandwidth", lambda v: f"{v:.0f}"),
    Column("of a\ncopy's", "of_copy", lambda v: f"{v:.2f}"),
    Column("time to\nfused Adam's", "to_fused", lambda v: f"{v:.2f}"),
)


def kernels_table(results: Results) -> Table:
    """Medians; for the ratio to fused Adam also the 10 % and 90 % quantiles of the rounds."""
    sections = []
    for case in results.settings["cases"]:
        names = list(dict.fromkeys(row.optimizer for row in results.rows if row.case == case))
        rows = {name: [_cell(results, case, name, column) for column in COLUMNS] for name in names}
        sections.append(Section(case, rows))
    timed = {row.optimizer for row in results.rows}
    alignment = "alignment 12, " if "alignment" in timed else ""  # older results have none
    caption = (
        f"{_caption(results)} In brackets the 10 % and 90 % quantiles. GB/s counts what has to be "
        f"moved: copy 8, first_trial 20, next_trial 16, {alignment}the others 28 bytes a parameter."
    )
    titles = tuple(column.title for column in COLUMNS)
    return Table(titles, sections, caption, ("model", "what"))


GPU_COLUMNS = (
    *COLUMNS[:3],
    Column("time to\nfused AdamW's", "to_fused", lambda v: f"{v:.2f}"),
    Column("launches", "launches", lambda v: f"{v:.0f}"),
)


def gpu_kernels_table(results: Results) -> Table:
    """Medians, for every model a section; a dash where there is nothing to say."""
    sections = []
    for case in results.settings["cases"]:
        names = list(dict.fromkeys(row.optimizer for row in results.rows if row.case == case))
        rows = {name: [_gpu_cell(results, case, name, c) for c in GPU_COLUMNS] for name in names}
        sections.append(Section(case, rows))
    left_out = [f"{what} ({why})" for what, why in results.settings["skipped"].items()]
    caption = (
        f"{results.settings['rounds']} rounds, medians, cold caches, the device's time. GB/s "
        "counts what has to be moved, with moments in fp32 (torch's own in the weights' dtype). "
        "Search steps are accepted at once, and include the host's two waits for losses."
        + (f" Left out: {'; '.join(left_out)}." if left_out else "")
    )
    titles = tuple(column.title for column in GPU_COLUMNS)
    return Table(titles, sections, caption, ("model", "what"))


def _gpu_cell(results: Results, case: str, name: str, column: Column) -> Cell:
    try:
        return Cell(column.show(results.row(case, name, column.metric).median))
    except KeyError:
        return Cell("\N{EN DASH}")


def _cell(results: Results, case: str, name: str, column: Column) -> Cell:
    row = results.row(case, name, column.metric)
    spread = ""
    if column.metric == "to_fused" and row.low != row.high:
        spread = f"{column.show(row.low)}\N{EN DASH}{column.show(row.high)}"
    return Cell(column.show(row.median), spread)


def _caption(results: Results) -> str:
    settings = results.settings
    return (
        f"fp32, {settings['tensors']} equal tensors, {settings['rounds']} rounds in "
        "turn, medians. Times of whole optimizer steps include Python's; the search's kernels are "
        "timed by themselves."
    )


def ratios_table(results: Results) -> Table:
    """For a page: the ratio to fused Adam alone, a column for every model and number of threads."""
    names = list(dict.fromkeys(row.optimizer for row in results.rows))
    cases = results.settings["cases"]
    rows = {
        name: [Cell(f"{results.row(case, name, 'to_fused').median:.2f}") for case in cases]
        for name in names
    }
    section = Section("torch's fused Adam", rows)
    return Table(tuple(cases), [section], _caption(results), ("relative to", "time of"))
