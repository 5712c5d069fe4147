"""Plots and tables from results, and from nothing else: for the README, and a page per folder.

In README.md a table stands from `<!-- NAME:begin -->` to `<!-- NAME:end -->`; every folder of
results has its plots and a RESULTS.md with all its tables.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.plots import PICTURES, draw
from bench.ranks import ratio_table, summary_table, validation_ratio_table
from bench.results import REPOSITORY, Results
from bench.sets.fetch import shown
from bench.swapin import swapin_table
from bench.tables import Table, by_case, overview, to_markdown

README = REPOSITORY / "README.md"
PUBLISHED = REPOSITORY / "bench" / "results"
UNPUBLISHED = ("local", "demo")  # folders measured here, and not committed
PAGE = "RESULTS.md"

Tables = Sequence[Callable[[Results], Table]]
RANKS = (summary_table, ratio_table)
# What a page shows of NAME.json: the title, tables before the pictures, and tables after them.
PARTS: dict[str, tuple[str, Tables, Tables]] = {
    "demo": ("The demo", (), (by_case,)),
    "train": ("What training reaches", (*RANKS, validation_ratio_table), (by_case,)),
    "family": ("The papers' other systems", RANKS, (by_case,)),
    "swapin": ("Swapped into scripts", (), (swapin_table,)),
    "step": ("What a training step costs", (), (by_case,)),
    "memory": ("Peak memory", (), (by_case,)),
    "kernels": ("The kernels", (), (by_case,)),
    "host": ("The host's time", (), (by_case,)),
}
# What the README shows between the markers of that name: of NAME.json the tables, of that kind of
# device or of any, and what is not measured where there is no file.
BLOCKS: dict[str, list[tuple[str, Tables, str, str]]] = {
    "demo": [("demo", (by_case,), "", "demo")],
    "train": [("train", RANKS, "", "training")],
    "family": [("family", RANKS, "", "family")],
    "step": [("step", (overview,), "cpu", "cost of a whole step on a CPU"),
             ("step", (overview,), "gpu", "cost of a whole step on a GPU")],
    "memory": [("memory", (overview,), "", "peak memory")],
    "kernels": [("kernels", (overview,), "cpu", "kernels' speed on a CPU")],
    "gpu": [("kernels", (by_case,), "gpu", "kernels' speed on a GPU")],
    "host": [("host", (by_case,), "", "host's time")],
}  # fmt: skip


def block(name: str) -> str:
    """The tables of one block of the README, for every device that was measured."""
    texts = []
    for file, tables, kind, what in BLOCKS[name]:
        paths = sorted(PUBLISHED.glob(f"*/{file}.json"))
        found = [Results.read(path) for path in paths if path.parent.name not in UNPUBLISHED]
        kept = [one for one in found if kind in ("", one.environment["kind"])]
        texts += [_shown(one, tables) for one in kept]
        texts += [] if kept else [f"The {what} is **not measured yet**.\n"]
    return "\n".join(texts)


def _shown(results: Results, makes: Tables) -> str:
    """The tables, and where they were measured."""
    where = results.environment
    device, versions = where["device"], f"torch {where['torch']}"
    if where["kind"] == "gpu":
        versions += f", Triton {where['triton']}"
    else:
        device += f" ({where['threads']} thread{'s' if where['threads'] != 1 else ''})"
    source = f"Measured on {device}, {versions}, {where['commit']}: `{where['command']}`.\n"
    return "\n".join([*(to_markdown(make(results)) for make in makes), source])


def with_blocks(text: str, blocks: dict[str, str]) -> str:
    """`text` with every block made anew; markers and blocks have to be the same ones."""
    unknown = set(re.findall(r"<!-- (\w+):(?:begin|end) -->", text)) - set(blocks)
    if unknown:
        raise ValueError(f"unknown markers {sorted(unknown)}; known are {sorted(blocks)}")
    for name, block in blocks.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"{begin} and {end} must stand there once each, in this order")
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{block.strip()}\n{end}{rest.partition(end)[2]}"
    return text


def page(folder: Path) -> str:
    """All tables of a folder, with its plots, as Markdown."""
    texts = ["# Results\n\nMade by `python -m bench report` from the JSON beside it.\n"]
    for name, (title, first, tables) in PARTS.items():
        if (path := folder / f"{name}.json").exists():
            results = Results.read(path)
            texts += [f"## {title}\n", *(to_markdown(make(results)) for make in first)]
            texts += [f"![{title}]({p}.png)\n" for p, (of, _) in PICTURES.items() if of == name]
            texts.append(_shown(results, tables))
    return "\n".join(texts)


def report(arguments: argparse.Namespace) -> int:
    wanted: dict[Path, str] = {}
    if arguments.folder:
        if not list(arguments.folder.glob("*.json")):
            raise SystemExit(f"{arguments.folder}: no results there; python -m bench --help")
        folders = [arguments.folder]
    else:
        found = {path.parent for path in PUBLISHED.glob("*/*.json")}
        folders = sorted(folder for folder in found if folder.name not in UNPUBLISHED)
        try:
            blocks = {name: block(name) for name in BLOCKS}
            wanted[README] = with_blocks(README.read_text(encoding="utf-8"), blocks)
        except ValueError as error:
            raise SystemExit(f"{README}: {error}") from None
    wanted |= {folder / PAGE: page(folder) for folder in folders}
    stale = [
        path for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]  # fmt: skip
    if arguments.check:
        for path in stale:
            print(f"{shown(path)} is out of date: run python -m bench report", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    drawn = [picture for folder in folders for picture in draw(folder)]
    print(f"Wrote {', '.join(shown(path) for path in [*wanted, *drawn])}.")
    return 0
