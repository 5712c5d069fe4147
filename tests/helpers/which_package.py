"""Which ``salsa_fused`` the tests import: the installed copy where there is one, else the tree.

The package lies at the root of the tree, and the root often comes first on the path (`python -m`
puts it there).  It would hide an installed package, which alone has its compiled modules.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
INHERITED = os.environ.get("PYTHONPATH", "")  # before `choose`


def choose() -> None:
    """Set the path of this process, and the environment of those that tests start.

    Whoever names the root in PYTHONPATH wants the tree, whatever is installed.
    """
    inherited = os.environ.get("PYTHONPATH", "")
    others = [path for path in sys.path if not _is_root(path)]
    if names_root(inherited) or installed_at(others) is None:
        sys.path[:] = [str(ROOT), *others]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), inherited]))
    else:
        sys.path[:] = [*others, str(ROOT)]  # at its end, for `bench`
        # `python -c` and `-m` leave out the current folder; Python 3.10 does not know of it
        os.environ["PYTHONSAFEPATH"] = "1"


def names_root(pythonpath: str) -> bool:
    """Whether the root is one of these paths."""
    return any(_is_root(path) for path in pythonpath.split(os.pathsep) if path)


def installed_at(search: list[str]) -> Path | None:
    """Return the folder of an installed copy, or None where there is none.

    A package that is installed editable is none: its own finder finds it, and it is in the tree.
    """
    spec = PathFinder.find_spec("salsa_fused", search)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent.parent
    installed = metadata.distributions(name="salsa_fused", path=[str(folder)])
    return folder if any(installed) else None


def description() -> str:
    """Say which package is tested, and which compiled modules it has; nothing is imported."""
    spec = PathFinder.find_spec("salsa_fused", sys.path)
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    kind = "the tree's" if package.parent == ROOT else "the installed one"
    found = {
        name: PathFinder.find_spec(name, [str(package)]) for name in ("_native", "_native_cuda")
    }
    have = " and ".join(name for name, there in found.items() if there) or "no compiled module"
    return f"salsa_fused: {kind}, with {have}, in {package}"


def _is_root(path: str) -> bool:
    return Path(path or ".").resolve() == ROOT
