"""Plots and tables from results, and from nothing else: for README and docs, a page per folder.

On their pages a table stands from `<!-- NAME:begin -->` to `<!-- NAME:end -->`; every folder of
results has its plots and a RESULTS.md with all its tables.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import plots
from bench.paper import figures
from bench.paper.claims import CAPTION, claims_tables
from bench.paper.details import details
from bench.paper.experiments import EXPERIMENTS
from bench.paper.published import accuracy_table, loss_table
from bench.ranks import ratio_table, summary_table, validation_ratio_table
from bench.results import REPOSITORY, Results
from bench.sets.fetch import shown
from bench.swapin import swapin_table
from bench.tables import Table, by_case, overview, to_markdown

PAGES = [
    REPOSITORY / "README.md", REPOSITORY / "bench" / "PAPER.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]  # fmt: skip
PICTURES = {**plots.PICTURES, **figures.PICTURES}
PUBLISHED = REPOSITORY / "bench" / "results"
Tables = Sequence[Callable[[Results], Table]]
RANKS = (summary_table, ratio_table)
# What a page shows of NAME.json: the title, and tables; pictures stand before the last one.
PARTS: dict[str, tuple[str, Tables]] = {
    "demo": ("The demo", (by_case,)),
    "train": ("What training reaches", (*RANKS, validation_ratio_table, by_case)),
    "family": ("The papers' other systems", (*RANKS, by_case)),
    "swapin": ("Swapped into scripts", (swapin_table,)),
    "step": ("What a training step costs", (by_case,)),
    "memory": ("Peak memory", (by_case,)),
    "kernels": ("The kernels", (by_case,)),
    "host": ("The host's time", (by_case,)),
    **{
        f"paper_{name}": (f"Do the papers hold? {one.title}", (details,))
        for name, one in EXPERIMENTS.items()
    },
}
# What a page shows between the markers of that name: of NAME.json the tables, of that kind of
# device or of any, and what is not measured where there is no file.
BLOCKS: dict[str, list[tuple[str, Tables, str, str]]] = {
    "ranks": [("train", (lambda found: summary_table(found, "ranks"),), "", "training")],
    "demo": [("demo", (by_case,), "", "demo")],
    "train": [("train", RANKS, "", "training")],
    "family": [("family", RANKS, "", "family")],
    "step": [("step", (overview,), "cpu", "cost of a whole step on a CPU"),
             ("step", (overview,), "gpu", "cost of a whole step on a GPU")],
    "memory": [("memory", (overview,), "", "peak memory")],
    "kernels": [("kernels", (overview,), "cpu", "kernels' speed on a CPU")],
    "gpu": [("kernels", (by_case,), "gpu", "kernels' speed on a GPU")],
    "host": [("host", (by_case,), "", "host's time")],
    "claims": [],  # of all files of a folder, see `block`
    "paper_tables": [("paper_tables", (accuracy_table, loss_table), "", "paper's tables")],
}  # fmt: skip


def published() -> list[Path]:
    """The folders of results that are shown: not those that were measured here, uncommitted."""
    found = {path.parent for path in PUBLISHED.glob("*/*.json")}
    return sorted(folder for folder in found if folder.name not in ("local", "demo"))


def block(name: str) -> str:
    """The tables of one block of a page, for every device that was measured."""
    if name == "claims":
        return "\n".join(map(_claims, published()))
    texts: list[str] = []
    for file, tables, kind, what in BLOCKS[name]:
        paths = [path for folder in published() if (path := folder / f"{file}.json").exists()]
        measured = [
            one for one in map(Results.read, paths) if kind in ("", one.environment["kind"])
        ]
        texts += [_shown(one, tables) for one in measured]
        texts += [] if measured else [f"The {what} is **not measured yet**.\n"]
    return "\n".join(texts)


def _claims(folder: Path) -> str:
    """A table for each paper, with a line for each problem."""
    texts = []
    for paper, table in claims_tables(folder).items():
        lines = [[*table.heads, *table.columns], ["---"] * (1 + len(table.columns))]
        for (claim,), (verdict, found, seeds) in table.rows.items():
            by_problem = found.text.replace("\n", "<br>")
            lines.append([claim, f"**{verdict.text}**", by_problem, seeds.text])
        rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        texts.append(f"### {paper}\n\n{rows}\n")
    return "\n".join([*texts, f"{CAPTION}\n"] if texts else [])


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
    found = re.findall(r"<!-- (\w+):(begin|end) -->", text)
    names = [name for name, _ in found[::2]]
    pairs = [(name, mark) for name in names for mark in ("begin", "end")]
    if found != pairs or sorted(names) != sorted(blocks):
        raise SystemExit(f"README and docs: there must be markers of {sorted(blocks)}, once each")
    pattern = r"(<!-- (\w+):begin -->\n).*?(<!-- \2:end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}{blocks[m[2]].strip()}\n{m[3]}", text, flags=re.DOTALL)


def page(folder: Path) -> str:
    """All tables of a folder, with its plots, as Markdown."""
    texts = ["# Results\n\nMade by `python -m bench report` from the JSON beside it.\n"]
    for name, (title, (*first, last)) in PARTS.items():
        if (path := folder / f"{name}.json").exists():
            results = Results.read(path)
            texts += [f"## {title}\n", *(to_markdown(make(results)) for make in first)]
            texts += [f"![{title}]({name}.png)\n"] if name in PICTURES else []
            texts.append(_shown(results, [last]))
    return "\n".join(texts)


def report(arguments: argparse.Namespace) -> int:
    folders = [arguments.folder] if arguments.folder else published()
    if arguments.folder and not any(arguments.folder.glob("*.json")):
        raise SystemExit(f"{arguments.folder}: no results there; python -m bench --help")
    wanted = {folder / "RESULTS.md": page(folder) for folder in folders}
    if not arguments.folder:
        texts = "\0".join(path.read_text(encoding="utf-8") for path in PAGES)
        wanted |= dict(zip(PAGES, with_blocks(texts, {n: block(n) for n in BLOCKS}).split("\0")))
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text("utf-8") != text]
    if arguments.check:
        for path in stale:
            print(f"{shown(path)} is out of date: run python -m bench report", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    drawn = [picture for folder in folders for picture in plots.draw(folder, PICTURES)]
    print(f"Wrote {', '.join(shown(path) for path in [*wanted, *drawn])}.")
    return 0
