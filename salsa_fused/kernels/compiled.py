"""The compiled module (``csrc/``), where it is there; where not, why."""

from __future__ import annotations

import importlib
import json
from contextlib import suppress
from pathlib import Path
from types import ModuleType

module: ModuleType | None = None
_import_error = ""
try:
    module = importlib.import_module("salsa_fused._native")
except ImportError as error:
    _import_error = str(error)
else:
    if not hasattr(module, "TensorReader"):  # built before the sources beside it
        module, _import_error = None, "it is older than the sources: run `pip install` again"


def missing() -> str | None:
    """Why the compiled module is not there; None if it is."""
    if module is not None:
        return None
    return reason_of_build("native") or f"the compiled module does not load: {_import_error}"


def reason_of_build(name: str) -> str | None:
    """What `pip install` noted where it left these kernels out."""
    note = Path(__file__).parent.parent / "_build.json"
    with suppress(OSError, ValueError):
        if reason := json.loads(note.read_text()).get(name):
            return f"it was not built: {reason}"
    return None


def description() -> str:
    """The compiler and the threading of the compiled module, in words."""
    if module is None:
        raise RuntimeError(f"backend 'native' is not available: {missing()}")
    threads = "OpenMP" if module.openmp else "one thread (built without OpenMP)"
    return f"C++, compiler {module.compiler}, {threads}"
