"""Tables: cells made from a results file, for the terminal and for Markdown.

`by_case` gives each case a section and each metric a column (for a page of results); `overview`
gives each case a column (for the README). A row is an optimizer, or a kernel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from bench.results import Results, Row

DASH = "\N{EN DASH}"  # between the lowest and the highest; and for what was not measured
MOST_COLUMNS = 8  # that a page has room for: a wider table goes on below


class Cell(NamedTuple):
    """A figure and its spread; the best one is shown in bold."""

    text: str
    spread: str = ""
    best: bool = False


class Section(NamedTuple):
    """One case: a title, and a row of cells for each optimizer."""

    title: str
    rows: dict[str, list[Cell]]


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]  # titles; a line feed where a narrow terminal may break them
    sections: list[Section]
    caption: str = ""
    heads: tuple[str, str] = ("problem", "optimizer")  # of sections and of their rows

    @property
    def titled(self) -> bool:
        """Whether a section has a title; the column of titles is left out otherwise."""
        return any(section.title for section in self.sections)


class Column(NamedTuple):
    """How one metric is shown."""

    title: str
    metric: str
    show: Callable[[float], str]
    figure: str = "mean"  # the statistic that is shown
    spread: bool = False
    best: int = 0  # 1 is the lowest, -1 the highest; with 0 none is in bold
    in_every_seed: bool = False  # best only where every seed says so; else by the mean
    absent: str = DASH

    def cell(self, results: Results, case: str, name: str) -> Cell:
        rows = results.rows_of(case, self.metric)
        if name not in rows:
            return Cell(self.absent)
        spread = spread_of(rows[name], self.show) if self.spread else ""
        return Cell(self.show(getattr(rows[name], self.figure)), spread, self._is_best(name, rows))

    def _is_best(self, name: str, rows: dict[str, Row]) -> bool:
        own, sign = rows[name], self.best
        if self.in_every_seed:
            others = [row for row in rows.values() if row is not own]
            return all(
                sign * a < sign * b for row in others for a, b in zip(own.values, row.values)
            )
        means = [sign * row.mean for row in rows.values() if math.isfinite(row.mean)]
        return sign != 0 and bool(means) and sign * own.mean == min(means)


def spread_of(row: Row, show: Callable[[float], str]) -> str:
    low, high = show(row.low), show(row.high)
    return f"{low}{DASH}{high}" if low != high else ""


# --- numbers --------------------------------------------------------------------------------------


def show_number(value: float) -> str:
    """Three decimals; two significant digits below 0.1, where losses differ by factors."""
    if not math.isfinite(value):
        return "diverged"
    if abs(value) >= 0.1:
        return f"{value:.3f}"
    return f"{value:#.2g}" if abs(value) >= 0.001 else f"{value:.1e}".replace("e-0", "e-")


def _zero_or(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}" if value else "0"


def _fewer_digits_from(limit: float, digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits if value >= limit else digits + 1}f}"


# --- what each benchmark shows --------------------------------------------------------------------

LOSS = Column("training\nloss", "train_loss", show_number, spread=True, best=1)
VALIDATION = LOSS._replace(title="validation\nloss", metric="validation_loss")
ACCURACY = LOSS._replace(
    title="validation\naccuracy %", metric="validation_accuracy",
    show=lambda value: f"{100 * value:.1f}", best=-1,
)  # fmt: skip
EXTRA = Column("extra fwd.\nper step", "extra_forwards", _zero_or(2))
TO_FUSED = Column("to fused\nAdamW", "to_fused", "{:.2f}".format, "median", spread=True)
PEAK = Column("peak MB", "peak_memory", "{:,.0f}".format, "median")
KERNELS = (
    Column("ms", "time", _fewer_digits_from(10, 1), "median"),
    Column("GB/s", "bandwidth", "{:.0f}".format, "median"),
    Column("of a\ncopy's", "of_copy", "{:.2f}".format, "median"),
)
TO_ADAM = TO_FUSED._replace(title="time to\nfused Adam's")
# The columns of every benchmark, what its sections and rows are called, and what the ratios of an
# overview are relative to.
SHOWN: dict[str, tuple[tuple[Column, ...], tuple[str, str], tuple[str, str]]] = {
    "demo": (
        (*(one._replace(in_every_seed=True) for one in (LOSS, VALIDATION, ACCURACY)),
         EXTRA._replace(title="extra\nfwd. per\nstep", show=_zero_or(3), spread=True),
         Column("steps", "steps", "{:.0f}".format),
         Column("last\nstep\nsize", "final_step_size", show_number, "median"),
         Column("ms per\nstep", "step_time", "{:.1f}".format, "median")),
        ("problem", "optimizer"), ("", ""),
    ),
    "train": (
        (LOSS, VALIDATION, ACCURACY, EXTRA, Column("s per\nrun", "train_time",
         _fewer_digits_from(10, 0)), Column("runs to\ntune", "tuning_runs", "{:.0f}".format,
         absent="0")),
        ("problem", "optimizer"), ("", ""),
    ),
    "step": (
        (Column("ms", "time", _fewer_digits_from(100, 0), "median"), TO_FUSED,
         EXTRA._replace(figure="median"),
         Column("ms in\nstep()", "in_step", _fewer_digits_from(1, 1), "median"), PEAK),
        ("model", "optimizer"), ("fused AdamW", "of"),
    ),
    "memory": (
        (PEAK, TO_FUSED, Column("state, bytes\na parameter", "state", "{:.1f}".format, "median")),
        ("model", "optimizer"), ("fused AdamW", "of"),
    ),
    "kernels": ((*KERNELS, TO_ADAM), ("model", "what"), ("torch's fused Adam", "time of")),
    "gpu_kernels": (
        (*KERNELS, TO_FUSED._replace(title="time to\nfused AdamW's", spread=False),
         Column("launches", "launches", "{:.0f}".format, "median")),
        ("model", "what"), ("", ""),
    ),
    "host": (
        (Column("us", "time", "{:.0f}".format, "median", spread=True), TO_ADAM),
        ("case", "optimizer"), ("", ""),
    ),
}  # fmt: skip
HOST_CASES = {
    "stay": "gradients where they were",
    "move": "gradients elsewhere in every step",
    "closure": "step(closure)",
}


def by_case(results: Results) -> Table:
    name = _kind(results)
    columns, heads, _ = SHOWN[name]
    sections = [
        Section(title, {of: [column.cell(results, case, of) for column in columns]
                        for of in _names(results, case)})
        for case, title in _cases(results).items()
    ]  # fmt: skip
    return Table(tuple(column.title for column in columns), sections, caption(name, results), heads)


def overview(results: Results) -> Table:
    """The ratios to torch's fused optimizer alone."""
    name, cases = _kind(results), _cases(results)
    _, _, (title, head) = SHOWN[name]
    longest_first = sorted((_names(results, case) for case in cases), key=len, reverse=True)
    names = dict.fromkeys(of for found in longest_first for of in found)
    column = TO_FUSED._replace(spread=False)
    rows = {of: [column.cell(results, case, of) for case in cases] for of in names}
    said = caption(f"{name}_overview", results)
    return Table(tuple(cases.values()), [Section(title, rows)], said, ("relative to", head))


def _kind(results: Results) -> str:
    if "backends" in results.settings:
        return "gpu_kernels"
    return {"family": "train"}.get(results.rows[0].bench, results.rows[0].bench)


def _cases(results: Results) -> dict[str, str]:
    measured = {row.case for row in results.rows}
    cases = results.settings.get(
        "cases", {case: title for case, title in HOST_CASES.items() if case in measured}
    )
    return cases if isinstance(cases, dict) else dict(zip(cases, cases))


def _names(results: Results, case: str) -> list[str]:
    return list(dict.fromkeys(row.optimizer for row in results.rows if row.case == case))


# --- captions -------------------------------------------------------------------------------------

CAPTIONS: dict[str, str] = {
    name: " ".join(text.split())
    for name, text in re.findall(
        r"^## (\w+)\n(.+?)(?=^## |\Z)",
        Path(__file__).with_name("captions.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
}


def caption(name: str, results: Results, **more: Any) -> str:
    """The caption of that name, with what is to be said of these results."""
    settings = results.settings
    optimizers = settings.get("optimizers", {})
    missing = settings.get("missing", settings.get("skipped", {}))
    known = {
        "how": "; ".join(f"{name}: {what}" for name, what in optimizers.items()),
        "each": ", ".join(f"{name} ({what})" for name, what in optimizers.items()),
        "first": settings.get("warm_up", 0) + 1,
        "units": _units(results),
        "order": "in turn" if settings.get("in_turn") else "one optimizer after the other",
        "precision": f"{settings['autocast']} autocast" if settings.get("autocast") else "fp32",
        # older results have none
        "alignment": "alignment 12, " * any(row.optimizer == "alignment" for row in results.rows),
        "which": "launches included" if settings.get("launches") else
                 "copies and launches left out of both",
        "left_out": f" Left out: {'; '.join(f'{k} ({v})' for k, v in missing.items())}."
                    if missing else "",
    }  # fmt: skip
    if f"{name}_overview" in CAPTIONS:
        known["overview"] = caption(f"{name}_overview", results)
    return CAPTIONS[name].format(**{**settings, **known, **more})


def _units(results: Results) -> str:
    """Nats, but for the problems that have another loss."""
    others: dict[str, list[str]] = {}
    for case, title in _cases(results).items():
        for unit in {row.unit for row in results.rows_of(case, "train_loss").values()} - {"nats"}:
            others.setdefault(unit, []).append(title)
    said = [f"{unit} of the {' and the '.join(titles)}" for unit, titles in others.items()]
    return "; ".join(["nats", *said])


# --- from a table to text -------------------------------------------------------------------------


def without_spread(table: Table) -> Table:
    """For a terminal, where many columns leave no room for it."""
    sections = [
        Section(title, {of: [cell._replace(spread="") for cell in row] for of, row in rows.items()})
        for title, rows in table.sections
    ]
    return replace(table, sections=sections)


def to_rich(table: Table) -> RichTable:
    """Fits a terminal of 80 columns: the spread stands below its figure."""
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rich.add_column("", max_width=28)
    for title in table.columns:
        rich.add_column(title, justify="right", no_wrap=True)
    for section in table.sections:
        if table.titled:
            rich.add_row(Text(section.title, style="bold"))
        for name, cells in section.rows.items():
            rich.add_row(f" {name}", *map(_rich_cell, cells))
        rich.add_section()
    return rich


def _rich_cell(cell: Cell) -> Text:
    figure = (cell.text, "bold" if cell.best else "")
    return Text.assemble(figure, (f"\n{cell.spread}", "dim")) if cell.spread else Text(*figure)


def to_markdown(table: Table) -> str:
    """A GitHub table: the spread in brackets behind its figure, the caption below."""
    parts = -(-len(table.columns) // MOST_COLUMNS)
    size = -(-len(table.columns) // parts)
    starts = range(0, len(table.columns), size)
    text = "\n".join(_markdown_part(table, start, start + size) for start in starts)
    return f"{text}\n{table.caption}\n" if table.caption else text


def _markdown_part(table: Table, start: int, end: int) -> str:
    columns = [title.replace("\n", " ") for title in table.columns[start:end]]
    heads = table.heads if table.titled else table.heads[1:]
    lines = [[*heads, *columns], [*("---" for _ in heads), *("---:" for _ in columns)]]
    for title, rows in table.sections:
        for name, cells in rows.items():
            names = [title, name] if table.titled else [name]
            lines.append([*names, *map(_markdown_cell, cells[start:end])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ({cell.spread})" if cell.spread else text
