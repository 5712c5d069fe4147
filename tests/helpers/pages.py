"""The pages for users, README and docs: their Python, their headings and their links."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ["CHANGELOG.md", "CONTRIBUTING.md", "bench/*.md", "bench/results/*/RESULTS.md"]
ALL = [*PAGES, *(path for pattern in OTHERS for path in sorted(ROOT.glob(pattern)))]


class Block(NamedTuple):
    """A block of Python on a page, without its indentation."""

    where: str  # page and line
    code: str


class Link(NamedTuple):
    """A link of a page, to a file of this project or into the same page."""

    where: str
    path: str  # "" for the same page
    anchor: str


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(f"{name_of(page)}:{line_of(text, found)}", textwrap.dedent(found[1]))
        for found in re.finditer(r"^ *```python\n(.*?)^ *```", text, re.M | re.S)
    ]


def links_of(page: Path) -> list[Link]:
    """Return links and pictures but those to other sites; what stands in code is none."""
    text = re.sub(r"```.*?```|`[^`\n]*`", blank, page.read_text(encoding="utf-8"), flags=re.S)
    links = re.finditer(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", text)
    return [
        Link(f"{name_of(page)}:{line_of(text, found)}", found[1], found[2] or "")
        for found in links
        if "://" not in found[1]
    ]


def headings_of(page: Path) -> list[str]:
    """Return the headings without the first, which is the page's title."""
    text = re.sub(r"```.*?```", blank, page.read_text(encoding="utf-8"), flags=re.S)
    return re.findall(r"^##+ (.*)$", text, re.M)


def slug_of(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def slug_on_site(heading: str) -> str:
    """Return the anchor that MkDocs gives it."""
    words = re.sub(r"[^\w\s-]", "", heading).strip().lower()
    return re.sub(r"[-\s]+", "-", words)


def block_with(text: str) -> str:
    """Return the Python of the one block of all pages in which the text stands."""
    (found,) = [block.code for block in BLOCKS if text in block.code]
    return found


def line_of(text: str, found: re.Match[str]) -> int:
    return text.count("\n", 0, found.start()) + 1


def blank(found: re.Match[str]) -> str:
    """Return what keeps the lines of the text, and nothing else of it."""
    return "\n" * found[0].count("\n")


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
