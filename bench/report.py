"""Plots and tables from results, and from nothing else: for the README, and a page per folder.

In README.md a table stands from `<!-- NAME:begin -->` to `<!-- NAME:end -->`; every folder of
results has its plots and a RESULTS.md with all its tables.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.family_plot import draw_family
from bench.host import host_table
from bench.kernel_table import gpu_kernels_table, kernels_table, ratios_table
from bench.plots import draw_demo
from bench.results import REPOSITORY, Results
from bench.sets.fetch import shown
from bench.step_plot import draw_step
from bench.step_table import memory_table, step_table
from bench.step_table import overview_table as ratios_overview
from bench.swapin_table import swapin_table
from bench.tables import Table, demo_table, to_markdown
from bench.train_plot import draw_train
from bench.train_summary import ratio_table, summary_table, validation_ratio_table
from bench.train_table import train_table
from bench.verdict import demo_verdict, standing_verdict, train_verdict

PUBLISHED = REPOSITORY / "bench" / "results"
UNPUBLISHED = (PUBLISHED / "local", PUBLISHED / "demo")  # measured here, and not committed
PAGE = "RESULTS.md"

MakeTable = Callable[[Results], Table]

# --- blocks of the README -------------------------------------------------------------------------


def demo_block(published: Path = PUBLISHED) -> str:
    """The table, the verdict, and where they were measured."""
    results = _read(published / "cpu", "demo")
    return _block(results, [demo_table(results)], demo_verdict(results))


def kernels_block(published: Path = PUBLISHED) -> str:
    """The CPU kernels' table, and where it was measured."""
    results = _read(published / "cpu", "kernels")
    return _block(results, [ratios_table(results)])


def host_block(published: Path = PUBLISHED) -> str:
    """What a plain step costs the host, beside every device that was measured."""
    return _everywhere(published, "host", host_table) or NOT_MEASURED.format("host's time")


def gpu_block(published: Path = PUBLISHED) -> str:
    """The kernels on every GPU that was measured."""
    found = _everywhere(published, "kernels", gpu_kernels_table, kind="gpu")
    return found or NOT_MEASURED.format("kernels' speed on a GPU")


def train_block(published: Path = PUBLISHED) -> str:
    """All problems in a line per optimizer, then every problem's ratio, for every device."""
    found = _everywhere(published, "train", summary_table, ratio_table, verdict=standing_verdict)
    return found or NOT_MEASURED.format("training")


def family_block(published: Path = PUBLISHED) -> str:
    """The papers' other systems, beside FusedSaLSa."""
    found = _everywhere(published, "family", summary_table, ratio_table)
    return found or NOT_MEASURED.format("family")


def step_block(published: Path = PUBLISHED) -> str:
    """Whole training steps on every device that was measured."""
    table = partial(ratios_overview, step_table)
    found = [_everywhere(published, "step", table, kind=kind) for kind in ("cpu", "gpu")]
    missing = NOT_MEASURED.format("cost of a whole step on a GPU")
    return "\n".join((found[0], found[1] or missing))


def memory_block(published: Path = PUBLISHED) -> str:
    """Peak memory on every device that was measured."""
    found = _everywhere(published, "memory", partial(ratios_overview, memory_table))
    return found or NOT_MEASURED.format("peak memory")


NOT_MEASURED = "The {} is **not measured yet**.\n"


def _read(folder: Path, name: str) -> Results:
    path = folder / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: python -m bench {name} --json {path}")
    return Results.read(path)


def _everywhere(
    published: Path,
    name: str,
    *tables: MakeTable,
    verdict: Callable[[Results], list[str]] = lambda results: [],
    kind: str | None = None,
) -> str:
    paths = [path for path in published.glob(f"*/{name}.json") if path.parent not in UNPUBLISHED]
    found = [Results.read(path) for path in sorted(paths)]
    kept = [one for one in found if kind in (None, one.environment["kind"])]
    return "\n".join(_block(one, [table(one) for table in tables], verdict(one)) for one in kept)


def _block(results: Results, tables: Sequence[Table], sentences: Sequence[str] = ()) -> str:
    texts = [to_markdown(table).rstrip() for table in tables]
    said = "\n".join(f"* {sentence}" for sentence in sentences)
    parts = [*texts, said, _source(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _source(results: Results) -> str:
    where = results.environment
    versions = f"torch {where['torch']}"
    if where["kind"] == "gpu":
        versions += f", Triton {where['triton']}"
    else:
        threads = f"{where['threads']} thread{'s' if where['threads'] != 1 else ''}"
        where = {**where, "device": f"{where['device']} ({threads})"}
    return f"Measured on {where['device']}, {versions}, {where['commit']}: `{where['command']}`."


# The name in the marker, and what stands between the markers.
BLOCKS: dict[str, Callable[[], str]] = {
    "demo": demo_block,
    "train": train_block,
    "family": family_block,
    "step": step_block,
    "memory": memory_block,
    "kernels": kernels_block,
    "gpu": gpu_block,
    "host": host_block,
}


def with_blocks(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """`text` with every block made anew; markers and blocks have to be the same ones."""
    unknown = set(re.findall(r"<!-- (\w+):(?:begin|end) -->", text)) - set(blocks)
    if unknown:
        raise ValueError(f"unknown markers {sorted(unknown)}; known are {sorted(blocks)}")
    for name, block in blocks.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"{begin} and {end} must stand there once each, in this order")
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{block().strip()}\n{end}{tail}"
    return text


# --- a page and plots for every folder ------------------------------------------------------------


def _kernels(results: Results) -> Table:
    of_gpu = results.environment["kind"] == "gpu"
    return gpu_kernels_table(results) if of_gpu else kernels_table(results)


class Part(NamedTuple):
    """Of a page: what is shown of one file of results, in this order."""

    title: str
    table: MakeTable
    verdict: Callable[[Results], list[str]] | None = None
    draw: Callable[[Results, Path], list[Path]] | None = None
    pictures: tuple[str, ...] = ()  # what `draw` draws
    overview: tuple[MakeTable, ...] = ()  # before the pictures


PARTS: dict[str, Part] = {
    "demo": Part("The demo", demo_table, demo_verdict, draw_demo, ("demo",)),
    "train": Part(
        "What training reaches", train_table, train_verdict, draw_train,
        ("train", "train_seconds"), (summary_table, ratio_table, validation_ratio_table),
    ),
    "family": Part(
        "The papers' other systems", train_table, None, draw_family,
        ("family",), (summary_table, ratio_table),
    ),
    "swapin": Part("Swapped into scripts", swapin_table),
    "step": Part("What a training step costs", step_table, None, draw_step, ("step",)),
    "memory": Part("Peak memory", memory_table),
    "kernels": Part("The kernels", _kernels),
    "host": Part("The host's time", host_table),
}  # fmt: skip


def page(folder: Path) -> str:
    """All tables of a folder, with its plots, as Markdown."""
    parts = ["# Results\n\nMade by `python -m bench report` from the JSON beside it.\n"]
    for name, part in PARTS.items():
        path = folder / f"{name}.json"
        if path.exists():
            results = Results.read(path)
            first = [to_markdown(table(results)) for table in part.overview]
            pictures = [f"![{part.title}]({picture}.png)\n" for picture in part.pictures]
            sentences = part.verdict(results) if part.verdict else ()
            block = _block(results, [part.table(results)], sentences)
            parts.append("\n".join([f"## {part.title}\n", *first, *pictures, block]))
    return "\n".join(parts)


def draw(folder: Path) -> list[Path]:
    """The plots of a folder, as PNG and as SVG."""
    drawn = []
    for name, part in PARTS.items():
        path = folder / f"{name}.json"
        if part.draw and path.exists():
            drawn += part.draw(Results.read(path), folder)
    return drawn


# --- the command ----------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="only the page and the plots of this folder"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    parser.add_argument("--file", type=Path, default=REPOSITORY / "README.md", help="the README")


def main(arguments: argparse.Namespace) -> int:
    wanted: dict[Path, Callable[[], str]]
    if arguments.folder:
        if not list(arguments.folder.glob("*.json")):
            raise SystemExit(f"{arguments.folder}: no results there; python -m bench --help")
        folders, wanted = [arguments.folder], {}
    else:
        folders = sorted({path.parent for path in PUBLISHED.glob("*/*.json")} - set(UNPUBLISHED))
        wanted = {arguments.file: partial(_readme, arguments.file)}
    wanted |= {folder / PAGE: partial(page, folder) for folder in folders}
    if arguments.check:
        stale = [path for path, text in wanted.items() if _text(path) != text()]
        for path in stale:
            print(f"{shown(path)} is out of date: run python -m bench report", file=sys.stderr)
        return int(bool(stale))
    for path, text in wanted.items():
        path.write_text(text(), encoding="utf-8")
    drawn = [picture for folder in folders for picture in draw(folder)]
    print(f"Wrote {', '.join(shown(path) for path in [*wanted, *drawn])}.")
    return 0


def _readme(path: Path) -> str:
    try:
        return with_blocks(_text(path), BLOCKS)
    except ValueError as error:
        raise SystemExit(f"{path}: {error}") from None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
