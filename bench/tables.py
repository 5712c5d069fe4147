"""Tables: cells made from a results file, for the terminal and for Markdown.

`by_case` gives each metric a column (for a page of results), `overview` each case (for docs/).
A row is an optimizer, or a kernel.
"""

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table as RichTable

from bench.results import Results, Row

DASH = "\N{EN DASH}"  # between the lowest and the highest; and for what was not measured
MOST_COLUMNS = 8  # that a page has room for: a wider table goes on below
# In a terminal spreads are shown where it is wide, or where there are few columns.
WIDE, FEW = 100, 5


class Cell(NamedTuple):
    """A figure and its spread; the best one is shown in bold."""

    text: str
    spread: str = ""
    best: bool = False


Rows = dict[tuple[str, ...], list[Cell]]  # by their names: (case, optimizer), or (optimizer,)


class Table(NamedTuple):
    columns: Sequence[str]  # titles; a line feed where a narrow terminal may break them
    rows: Rows
    caption: str
    heads: tuple[str, ...]  # of the names


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
        own = rows.pop(name)
        spread = spread_of(own, self.show) if self.spread else ""
        return Cell(self.show(getattr(own, self.figure)), spread, self._best(own, rows.values()))

    def _best(self, own: Row, others: Collection[Row]) -> bool:
        sign = self.best
        if self.in_every_seed:
            pairs = (pair for row in others for pair in zip(own.values, row.values))
            return all(sign * a < sign * b for a, b in pairs)
        means = [sign * row.mean for row in (own, *others) if math.isfinite(row.mean)]
        return sign != 0 and sign * own.mean == min(means, default=math.nan)


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


def _fewer_digits_from(limit: float, digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits if value >= limit else digits + 1}f}"


# --- what each benchmark shows --------------------------------------------------------------------

LOSS = Column("training\nloss", "train_loss", show_number, spread=True, best=1)
VALIDATION = LOSS._replace(title="validation\nloss", metric="validation_loss")
ACCURACY = LOSS._replace(
    title="validation\naccuracy %", metric="validation_accuracy",
    show=lambda value: f"{100 * value:.1f}", best=-1,
)  # fmt: skip
EXTRA = Column("extra fwd.\nper step", "extra_forwards", lambda x: f"{x:.2f}" if x else "0")
TO_FUSED = Column("to fused\nAdamW", "to_fused", "{:.2f}".format, "median", spread=True)
TO_ADAM = TO_FUSED._replace(title="time to\nfused Adam's")
PEAK = Column("peak MB", "peak_memory", "{:,.0f}".format)
KERNELS = (
    Column("ms", "time", _fewer_digits_from(10, 1), "median"),
    Column("GB/s", "bandwidth", "{:.0f}".format, "median"),
    Column("of a\ncopy's", "of_copy", "{:.2f}".format, "median"),
)
# The columns of every benchmark.
SHOWN: dict[str, tuple[Column, ...]] = {
    "demo": (
        *(one._replace(in_every_seed=True) for one in (LOSS, VALIDATION, ACCURACY)),
        EXTRA._replace(title="extra\nfwd. per\nstep", spread=True,
                       show=lambda x: f"{x:.3f}" if x else "0"),
        Column("steps", "steps", "{:.0f}".format),
        Column("last\nstep\nsize", "final_step_size", show_number, "median"),
        Column("ms per\nstep", "step_time", "{:.1f}".format, "median"),
    ),
    "train": (
        LOSS, VALIDATION, ACCURACY, EXTRA,
        Column("s per\nrun", "train_time", _fewer_digits_from(10, 0)),
        Column("runs to\ntune", "tuning_runs", "{:.0f}".format, absent="0"),
    ),
    "step": (Column("ms", "time", _fewer_digits_from(100, 0), "median"), TO_FUSED, EXTRA, PEAK),
    "memory": (PEAK, TO_FUSED, Column("held, bytes\na parameter", "held", "{:.1f}".format)),
    "kernels": (*KERNELS, TO_ADAM),
    "gpu_kernels": (
        *KERNELS, TO_FUSED._replace(title="time to\nfused AdamW's", spread=False),
    ),
    "host": (Column("us", "time", "{:.0f}".format, "median", spread=True), TO_ADAM),
}  # fmt: skip
# What its cases and rows are called.
PROBLEMS = ("problem", "optimizer")
HEADS = {
    "step": ("model", "optimizer"), "memory": ("model", "optimizer"), "host": ("case", "optimizer"),
    "kernels": ("model", "what"), "gpu_kernels": ("model", "what"),
}  # fmt: skip
# What the ratios of an overview are relative to, and what they are of.
RELATIVE = {
    "step": ("fused AdamW", "of"),
    "memory": ("fused AdamW", "of"),
    "kernels": ("torch's fused Adam", "time of"),
}
HOST_CASES = {
    "stay": "gradients where they were",
    "move": "gradients elsewhere in every step",
    "closure": "step(closure)",
    "plain": "launches included",
    "dtensors": "DTensors, launches included",
}


def by_case(results: Results) -> Table:
    kind = _kind(results)
    rows: Rows = {
        (title, name): [column.cell(results, case, name) for column in SHOWN[kind]]
        for case, title in _cases(results).items()
        for name in _names(results, case)
    }
    said = [caption(name, results) for name in (f"{kind}_overview", kind) if name in CAPTIONS]
    titles, heads = [column.title for column in SHOWN[kind]], HEADS.get(kind, PROBLEMS)
    return Table(titles, rows, " ".join(said), heads)


def overview(results: Results) -> Table:
    """The ratios to torch's fused optimizer alone."""
    kind, cases = _kind(results), _cases(results)
    title, head = RELATIVE[kind]
    longest_first = sorted((_names(results, case) for case in cases), key=len, reverse=True)
    column = TO_FUSED._replace(spread=False)
    rows: Rows = {
        (title, name): [column.cell(results, case, name) for case in cases]
        for names in longest_first
        for name in names
    }
    said = caption(f"{kind}_overview", results)
    return Table([*cases.values()], rows, said, ("relative to", head))


def _kind(results: Results) -> str:
    bench = results.rows[0].bench
    if bench == "kernels" and results.environment["kind"] == "gpu":
        return "gpu_kernels"
    return "train" if bench == "family" else bench


def _cases(results: Results) -> dict[str, str]:
    measured = {row.case for row in results.rows}
    hosts = {case: title for case, title in HOST_CASES.items() if case in measured}
    cases = results.settings.get("cases", hosts)
    return cases if isinstance(cases, dict) else dict(zip(cases, cases))


def _names(results: Results, case: str) -> list[str]:
    return list(dict.fromkeys(row.optimizer for row in results.rows if row.case == case))


# --- captions -------------------------------------------------------------------------------------

_PARTS = Path(__file__).with_name("captions.md").read_text(encoding="utf-8").split("\n## ")[1:]
CAPTIONS = {name: " ".join(words) for name, *words in map(str.split, _PARTS)}


def caption(name: str, results: Results, **more: Any) -> str:
    """The caption of that name, with what is to be said of these results."""
    settings = results.settings
    optimizers, missing = settings.get("optimizers", {}), settings.get("missing", {})
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


def to_rich(table: Table, width: int) -> RichTable:
    """For a terminal of that width: the case in a line of its own, the spread below its figure."""
    spread = "\n[dim]{}[/]" if width >= WIDE or len(table.columns) <= FEW else ""
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rich.add_column("", max_width=28)
    for title in table.columns:
        rich.add_column(title, justify="right", no_wrap=True)
    last: list[str] = []
    for (*case, name), cells in table.rows.items():
        if case != last:
            rich.add_section()
            rich.add_row(*(f"[bold]{title}[/]" for title in case))
        last = case
        rich.add_row(f" {name}", *(_shown(cell, "[bold]{}[/]", spread) for cell in cells))
    return rich


def to_markdown(table: Table) -> str:
    """A GitHub table: the spread in brackets behind its figure, the caption below."""
    parts = -(-len(table.columns) // MOST_COLUMNS)
    size, text = -(-len(table.columns) // parts), ""
    for start in range(0, len(table.columns), size):
        columns = [title.replace("\n", " ") for title in table.columns[start : start + size]]
        lines = [[*table.heads, *columns], ["---"] * len(table.heads) + ["---:"] * len(columns)]
        for names, cells in table.rows.items():
            shown = [_shown(cell, "**{}**", " ({})") for cell in cells[start : start + size]]
            lines.append([*names, *shown])
        text += "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
    return f"{text}{table.caption}\n"


def _shown(cell: Cell, bold: str, spread: str) -> str:
    text = bold.format(cell.text) if cell.best else cell.text
    return text + spread.format(cell.spread) if cell.spread else text
