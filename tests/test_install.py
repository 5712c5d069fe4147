"""Installing where there is no compiler: the pure-Python package, and it says what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build_wheel(folder: Path, path: str) -> tuple[Path, str]:
    """The wheel that pip builds with these programs on PATH, and what the build printed."""
    source = folder / "source"  # a copy: the build leaves files behind
    built = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in ("csrc", "salsa_fused"):
        shutil.copytree(ROOT / name, source / name, ignore=built)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", str(folder), "."]
    if all(map(importlib.util.find_spec, ("pybind11", "setuptools", "ninja"))):
        command.insert(-1, "--no-build-isolation")
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC", "PYTHONPATH")}
    done = subprocess.run(
        command, cwd=source, env={**environment, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("no compiler")
    empty = folder / "bin"
    empty.mkdir()
    return build_wheel(folder, str(empty))


def run_installed(wheel: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python with this wheel, and without the editable install that -S keeps out."""
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    libraries = [path for path in sys.path if path.endswith("-packages")]
    search = os.pathsep.join([str(folder / "installed"), *libraries])
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
    )


def test_the_build_says_so_and_leaves_pure_python(without_compiler):
    wheel, output = without_compiler
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "_native" in name]
    assert "salsa_fused/optimizer.py" in names and "salsa_fused/py.typed" in names
    note = json.loads(zipfile.ZipFile(wheel).read("salsa_fused/_build.json"))
    assert note["native"].startswith("no C++ compiler was found")
    assert "the C++ kernels were not built: no C++ compiler" in output


def test_the_report_says_why(without_compiler, tmp_path):
    done = run_installed(without_compiler[0], tmp_path, "-m", "salsa_fused")
    assert done.returncode == 0, done.stderr
    assert "missing: it was not built: no C++ compiler was found" in done.stdout
    assert "served by reference" in done.stdout


TRAIN = """
import torch, warnings
from salsa_fused import FusedSaLSa
w = torch.ones(3, requires_grad=True)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    optimizer = FusedSaLSa([w])
    for _ in range(30):
        optimizer.step(lambda: w.square().sum())
print(len([s for s in seen if "without its compiled kernels" in str(s.message)]), w[0].item())
"""


def test_it_trains_and_warns_once(without_compiler, tmp_path):
    done = run_installed(without_compiler[0], tmp_path, "-c", TRAIN)
    assert done.returncode == 0, done.stderr
    warned, weight = done.stdout.split()
    assert warned == "1" and abs(float(weight)) < 0.5
