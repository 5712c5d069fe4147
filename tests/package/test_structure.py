"""The structure of the sources: no import circle, no long file, directions in every language."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from salsa_fused.kernels import DIRECTIONS

ROOT = Path(__file__).parent.parent.parent
LONGEST = 450  # lines of a file
SOURCES = [
    path
    for folder in ("salsa_fused", "csrc", "bench", "examples", "tests")
    for pattern in ("*.py", "*.h", "*.cpp", "*.cu")
    for path in (ROOT / folder).rglob(pattern)
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]


def imports_of(package: str) -> dict[str, set[str]]:
    """The modules of a package that each of them imports, within functions and types too."""
    folder = ROOT / package
    names = {}
    for path in folder.rglob("*.py"):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        names[".".join(parts[:-1] if is_package else parts)] = path, is_package
    found: dict[str, set[str]] = {}
    for name, (path, is_package) in names.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = name.split(".")
                above = above[: len(above) - node.level + is_package] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                # `from . import x` is an import of the module x, not of the package around it
                modules = [f"{base}.{alias.name}" for alias in node.names]
                targets = [m if m in names else base for m in modules]
            else:
                continue
            found[name] |= {target for target in targets if target in names and target != name}
    return found


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, or an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(imports[name]):
            if circle := visit(target, [*path, name]):
                return circle
        done.add(name)
        return []

    for name in sorted(imports):
        if circle := visit(name, []):
            return circle
    return []


@pytest.mark.parametrize("package", ["salsa_fused", "bench"])
def test_no_import_circle(package):
    imports = imports_of(package)
    assert len(imports) > 10 and any(imports.values())
    assert circle_in(imports) == []


def test_a_circle_would_be_found():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_file_is_long():
    assert len(SOURCES) > 100
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in SOURCES}
    assert {name: n for name, n in lines.items() if n > LONGEST} == {}


def test_a_direction_is_one_entry_in_each_language():
    """In C++ and CUDA a struct, in Triton a branch, and a reference in float64."""
    from reference.family import DIRECTIONS as REFERENCES

    cpp = (ROOT / "csrc" / "directions.h").read_text()
    triton = ROOT / "salsa_fused" / "kernels" / "backends" / "triton_directions.py"
    structs = {name.lower() for name in re.findall(r"^struct (\w+) [:{]", cpp, re.MULTILINE)}
    for name, direction in DIRECTIONS.items():
        assert direction.arithmetic in structs
        assert f'"{direction.arithmetic}"' in triton.read_text() or direction.arithmetic == "adam"
        assert name in REFERENCES
