"""The README's Python, from its own text."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    textwrap.dedent(block)
    for block in re.findall(r"^ *```python\n(.*?)^ *```", README, re.M | re.S)
]


def block_with(text: str) -> str:
    """Return the one block in which the text stands."""
    (found,) = [block for block in BLOCKS if text in block]
    return found
