"""The demo's table: once as cells, then for the terminal and for Markdown."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bench.results import Results, Row

DASH = "\N{EN DASH}"  # between the lowest and the highest
MOST_COLUMNS = 8  # that a page has room for: a table of more goes on below


class Cell(NamedTuple):
    """A figure and its spread; `best`: better than every other optimizer in every repetition."""

    text: str
    spread: str = ""
    best: bool = False


class Section(NamedTuple):
    """One problem: a title, and a row of cells for each optimizer."""

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
        """A table of one section may do without its title, and without that column."""
        return any(section.title for section in self.sections)


class Column(NamedTuple):
    title: str
    metric: str
    show: Callable[[float], str]
    better: Callable[[float, float], bool] | None = None  # None: nothing to win
    figure: str = "mean"  # the statistic that is shown
    spread: bool = True


def show_number(value: float) -> str:
    """Three decimals; two significant digits below 0.1, where losses differ by factors."""
    if abs(value) >= 0.1:
        return f"{value:.3f}"
    return f"{value:#.2g}" if abs(value) >= 0.001 else f"{value:.1e}".replace("e-0", "e-")


DEMO_COLUMNS = (
    Column("training\nloss", "train_loss", show_number, operator.lt),
    Column("validation\nloss", "validation_loss", show_number, operator.lt),
    Column(
        "validation\naccuracy %", "validation_accuracy", lambda v: f"{100 * v:.1f}", operator.gt
    ),
    Column("extra fwd.\nper step", "extra_forwards", lambda v: f"{v:.3f}" if v else "0"),
    Column("ms per\nstep", "step_time", lambda v: f"{v:.1f}", figure="median", spread=False),
)


def demo_table(results: Results) -> Table:
    """Per problem and optimizer: the mean over the seeds, with the lowest and the highest."""
    optimizers = list(results.settings["optimizers"])
    sections = [
        Section(title, {name: _cells(results, case, name, optimizers) for name in optimizers})
        for case, title in results.settings["cases"].items()
    ]
    return Table(tuple(column.title for column in DEMO_COLUMNS), sections, _demo_caption(results))


def _cells(results: Results, case: str, optimizer: str, optimizers: list[str]) -> list[Cell]:
    cells = []
    for column in DEMO_COLUMNS:
        row = results.row(case, optimizer, column.metric)
        others = [
            results.row(case, name, column.metric) for name in optimizers if name != optimizer
        ]
        cells.append(
            Cell(
                column.show(getattr(row, column.figure)),
                _spread(row, column),
                _is_best(row, others, column),
            )
        )
    return cells


def _is_best(row: Row, others: list[Row], column: Column) -> bool:
    if column.better is None:
        return False
    better = column.better
    return all(
        better(own, theirs)
        for other in others
        for own, theirs in zip(row.values, other.values, strict=True)
    )


def _spread(row: Row, column: Column) -> str:
    low, high = column.show(row.low), column.show(row.high)
    return f"{low}{DASH}{high}" if column.spread and low != high else ""


def _demo_caption(results: Results) -> str:
    settings = results.settings
    how = ", ".join(f"{name} ({setting})" for name, setting in settings["optimizers"].items())
    return (
        f"{how}: the same work, where a forward counts 1 and a backward 2, whoever asks for it. "
        f"Means over {settings['seeds']} seeds (lowest{DASH}highest); bold: better in every seed. "
        f"Losses (nats) and accuracy: evaluation mode, mean over the last "
        f"{settings['final_share']:.0%} of the work; {settings['samples']}. "
        f"Extra forwards: from step {settings['warm_up'] + 1} on. "
        "Milliseconds: the median, which is a step without a search."
    )


def finish(measured: Results, table: Table, file: Path, console: Console) -> int:
    """The end of a benchmark: its file, its table, and the exit code."""
    measured.write(file)
    console.print(to_rich(table))
    console.print(table.caption, style="dim")
    console.print(f"\nWrote {file}.")
    return 0


def without_spread(table: Table) -> Table:
    """For a terminal, where many columns leave no room for it."""
    sections = [
        Section(title, {name: [cell._replace(spread="") for cell in cells]
                        for name, cells in rows.items()})
        for title, rows in table.sections
    ]  # fmt: skip
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
            rich.add_row(f" {name}", *(_rich_cell(cell) for cell in cells))
        rich.add_section()
    return rich


def _rich_cell(cell: Cell) -> Text:
    text = Text()
    text.append(cell.text, style="bold" if cell.best else "")
    if cell.spread:
        text.append(f"\n{cell.spread}", style="dim")
    return text


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
    lines = [
        _markdown_row([*heads, *columns]),
        _markdown_row([*("---" for _ in heads), *("---:" for _ in columns)]),
    ]
    for title, rows in table.sections:
        for name, cells in rows.items():
            names = [title, name] if table.titled else [name]
            lines.append(_markdown_row([*names, *map(_markdown_cell, cells[start:end])]))
    return "\n".join(lines) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ({cell.spread})" if cell.spread else text
