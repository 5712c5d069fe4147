"""The compiled modules (``csrc/``), where they are there; where not, why.

``module`` is that of the CPU's kernels; backends/cuda.py loads the other.
"""

from __future__ import annotations

import importlib
import json
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from .directions import DIRECTIONS


def load(name: str) -> tuple[ModuleType | None, str]:
    """Return a compiled module, or None and why it cannot be used."""
    try:
        found = importlib.import_module(f"salsa_fused.{name}")
    except ImportError as error:
        return None, str(error)
    if getattr(found, "directions", 0) != len({d.arithmetic for d in DIRECTIONS.values()}):
        return None, "it is older than the sources: run `pip install` again"
    return found, ""


module, _import_error = load("_native")


def missing() -> str | None:
    """Return why the compiled module is not there, or None if it is."""
    if module is not None:
        return None
    return reason_of_absence("native", _import_error)


def reason_of_absence(name: str, import_error: str) -> str:
    """Return what `pip install` noted where it left these kernels out, or else the error."""
    note = Path(__file__).parent.parent / "_build.json"
    with suppress(OSError, ValueError):
        if reason := json.loads(note.read_text()).get(name):
            return f"it was not built: {reason}"
    return f"the compiled module does not load: {import_error}"
