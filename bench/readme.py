"""Tables in README.md, made from the committed results: `<!-- NAME:begin -->` to `NAME:end`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench.host import host_table
from bench.kernel_table import gpu_kernels_table, ratios_table
from bench.results import REPOSITORY, Results
from bench.tables import demo_table, to_markdown
from bench.verdict import demo_verdict

PUBLISHED = REPOSITORY / "bench" / "results"


def demo_block(published: Path = PUBLISHED) -> str:
    """The table, the verdict, and where they were measured."""
    path = published / "cpu" / "demo.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: python -m bench demo --out {path.parent}")
    results = Results.read(path)
    sentences = "\n".join(f"* {sentence}" for sentence in demo_verdict(results))
    return f"{to_markdown(demo_table(results))}\n{sentences}\n\n{_source(results)}\n"


def kernels_block(published: Path = PUBLISHED) -> str:
    """The CPU kernels' table, and where it was measured."""
    path = published / "cpu" / "kernels.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: python -m bench kernels --json {path}")
    results = Results.read(path)
    return f"{to_markdown(ratios_table(results))}\n{_source(results)}\n"


def host_block(published: Path = PUBLISHED) -> str:
    """What a plain step costs the host, beside every device that was measured."""
    found = [Results.read(path) for path in sorted(published.glob("*/host.json"))]
    return "\n".join(f"{to_markdown(host_table(each))}\n{_source(each)}\n" for each in found)


def gpu_block(published: Path = PUBLISHED) -> str:
    """The kernels on every GPU that was measured."""
    parts = []
    for path in sorted(published.glob("*/kernels.json")):
        results = Results.read(path)
        if results.environment["kind"] == "gpu":
            parts.append(f"{to_markdown(gpu_kernels_table(results))}\n{_source(results)}\n")
    return "\n".join(parts) or NOT_MEASURED


NOT_MEASURED = "The kernels' speed on a GPU is **not measured yet**.\n"


def _source(results: Results) -> str:
    where = results.environment
    versions = f"torch {where['torch']}"
    if where["kind"] == "gpu":
        versions += f", Triton {where['triton']}"
    else:
        where = {**where, "device": f"{where['device']} ({where['threads']} threads)"}
    return f"Measured on {where['device']}, {versions}, {where['commit']}."


# The name in the marker, and what stands between the markers.
BLOCKS: dict[str, Callable[[], str]] = {
    "demo": demo_block,
    "kernels": kernels_block,
    "gpu": gpu_block,
    "host": host_block,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    parser.add_argument("--file", type=Path, default=REPOSITORY / "README.md")


def main(arguments: argparse.Namespace) -> int:
    before = arguments.file.read_text(encoding="utf-8")
    try:
        after = with_blocks(before, BLOCKS)
    except ValueError as error:
        raise SystemExit(f"{arguments.file}: {error}") from None
    if arguments.check:
        if after != before:
            print(f"{arguments.file} is out of date: run python -m bench readme", file=sys.stderr)
        return int(after != before)
    arguments.file.write_text(after, encoding="utf-8")
    return 0


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
