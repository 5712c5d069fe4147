"""The compiled modules (``csrc/``), where they are there; where not, why.

``module`` is that of the CPU's kernels; native_cuda.py loads the other.
"""

from __future__ import annotations

import importlib
import json
from contextlib import suppress
from pathlib import Path
from types import ModuleType


def load(name: str) -> tuple[ModuleType | None, str]:
    """A compiled module, or None and the error of its import."""
    try:
        return importlib.import_module(f"salsa_fused.{name}"), ""
    except ImportError as error:
        return None, str(error)


module, _import_error = load("_native")
if module is not None and not hasattr(module, "cpu_alignment"):  # built before the sources
    module, _import_error = None, "it is older than the sources: run `pip install` again"


def missing() -> str | None:
    """Why the compiled module is not there; None if it is."""
    if module is not None:
        return None
    return reason_of_absence("native", _import_error)


def reason_of_absence(name: str, import_error: str) -> str:
    """What `pip install` noted where it left these kernels out, or else the error."""
    note = Path(__file__).parent.parent / "_build.json"
    with suppress(OSError, ValueError):
        if reason := json.loads(note.read_text()).get(name):
            return f"it was not built: {reason}"
    return f"the compiled module does not load: {import_error}"


def description() -> str:
    """The compiler and the threading of the compiled module, in words."""
    if module is None:
        raise RuntimeError(f"backend 'native' is not available: {missing()}")
    threads = "OpenMP" if module.openmp else "one thread (built without OpenMP)"
    return f"C++, compiler {module.compiler}, {threads}"
