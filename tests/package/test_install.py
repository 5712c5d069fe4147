"""Installing with every compiler, without nvcc, and without any: each says what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def copy_of_the_sources(folder: Path) -> Path:
    """Building leaves files behind."""
    source = folder / "source"
    built = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in ("csrc", "salsa_fused"):
        shutil.copytree(ROOT / name, source / name, ignore=built)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    return source


def build_wheel(source: Path, folder: Path, path: str, **variables: str) -> tuple[Path, str]:
    """Build a wheel with pip, with the programs on this PATH alone.

    Returns: the wheel, which lies in ``folder``, and what the build printed.
    """
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", str(folder), "."]
    if all(map(importlib.util.find_spec, ("pybind11", "setuptools", "ninja"))):
        command.insert(-1, "--no-build-isolation")
    unset = ("CXX", "CC", "PYTHONPATH", "CUDA_HOME", "CUDA_PATH")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment |= {"PATH": path, **variables}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("no compiler")
    empty = folder / "bin"
    empty.mkdir()
    return build_wheel(copy_of_the_sources(folder), folder, str(empty))


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
    assert not [name for name in names if name.endswith((".so", ".pyd"))]
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


# -- with a C++ compiler, with and without nvcc -----------------------------------------------

TOOLS = ("c++", "g++", "gcc", "cc", "as", "ld", "ar")
needs_cxx = pytest.mark.skipif(
    shutil.which("c++") is None or sys.platform != "linux", reason="needs a C++ compiler on Linux"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A tree in which several wheels are built: ninja compiles again only what has changed."""
    return copy_of_the_sources(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> str:
    """A PATH with a C++ compiler and without nvcc."""
    folder = tmp_path_factory.mktemp("bin")
    for tool in TOOLS:
        if path := shutil.which(tool):
            (folder / tool).symlink_to(path)
    return str(folder)


@pytest.fixture(scope="module")
def all_tools(tools) -> str:
    """A PATH with nvcc, too, where there is one; compilers and ninja are the same."""
    nvcc = shutil.which("nvcc")
    return tools if nvcc is None else os.pathsep.join([tools, str(Path(nvcc).parent)])


def compiled_modules(wheel: Path) -> set[str]:
    names = zipfile.ZipFile(wheel).namelist()
    return {Path(name).name.partition(".")[0] for name in names if name.endswith(".so")}


@pytest.mark.slow
@needs_cxx
def test_without_nvcc_the_cpus_kernels_alone(source, tools, tmp_path):
    wheel, output = build_wheel(source, tmp_path, tools)
    assert compiled_modules(wheel) == {"_native"}
    assert "the CUDA kernels were not built: nvcc was not found" in output
    done = run_installed(wheel, tmp_path, "-m", "salsa_fused")
    assert "native, cuda          missing: it was not built: nvcc was not found" in done.stdout
    assert "served by native" in done.stdout


@pytest.mark.slow
@needs_cxx
def test_skipping_and_forcing_cuda(source, all_tools, tmp_path):
    wheel, _ = build_wheel(source, tmp_path, all_tools, SALSA_FUSED_SKIP_CUDA="1")
    assert compiled_modules(wheel) == {"_native"}
    note = json.loads(zipfile.ZipFile(wheel).read("salsa_fused/_build.json"))
    assert note == {"native": None, "cuda": "SALSA_FUSED_SKIP_CUDA is set"}
    both = {"SALSA_FUSED_SKIP_CUDA": "1", "SALSA_FUSED_FORCE_CUDA": "1"}
    with pytest.raises(AssertionError, match="SALSA_FUSED_SKIP_CUDA is set"):
        build_wheel(source, tmp_path / "forced", all_tools, **both)


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


ARCHITECTURES = {"SALSA_FUSED_CUDA_ARCHS": "8.6;9.0"}


@pytest.mark.slow
@needs_cxx
@needs_nvcc
def test_with_nvcc_all_kernels(source, all_tools, tmp_path):
    """For the architectures that are asked for; nothing of this machine stands in the wheel."""
    wheel, _ = build_wheel(source, tmp_path, all_tools, **ARCHITECTURES)
    assert compiled_modules(wheel) == {"_native", "_native_cuda"}
    machine = (tmp_path, source, sys.prefix, sys.base_prefix, "/build-env-")
    for name in zipfile.ZipFile(wheel).namelist():
        content = zipfile.ZipFile(wheel).read(name)
        assert not [path for path in machine if str(path).encode() in content], name
    done = run_installed(wheel, tmp_path, "-m", "salsa_fused")
    assert "CUDA C++ for compute capability 8.6, 9.0\n" in done.stdout


@needs_cxx
@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know(source, all_tools, tmp_path):
    for index, (asked, answer) in enumerate({"1.0": "and not [10]", "native": "'native'"}.items()):
        archs = {"SALSA_FUSED_CUDA_ARCHS": asked}
        wheel, output = build_wheel(source, tmp_path / str(index), all_tools, **archs)
        assert compiled_modules(wheel) == {"_native"}
        assert answer in output


@pytest.mark.slow
@needs_cxx
@needs_nvcc
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pybind11", "setuptools"))), reason="needs pybind11"
)
def test_a_second_build_leaves_nothing_of_the_first(source, all_tools):
    """In the same tree, beside the sources; and a broken note of an earlier one is no obstacle."""
    (source / "salsa_fused" / "_build.json").write_text("{")
    found = []
    for skip in ("0", "1"):
        variables = {"PATH": all_tools, "SALSA_FUSED_SKIP_CUDA": skip, **ARCHITECTURES}
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        done = subprocess.run(
            command, cwd=source, env={**os.environ, **variables}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        modules = sorted(p.name.partition(".")[0] for p in (source / "salsa_fused").glob("*.so"))
        found.append((modules, json.loads((source / "salsa_fused" / "_build.json").read_text())))
    skipped = "SALSA_FUSED_SKIP_CUDA is set"
    assert found == [
        (["_native", "_native_cuda"], {"native": None, "cuda": None}),
        (["_native"], {"native": None, "cuda": skipped}),
    ]


def test_the_source_distribution_holds_all_sources(tmp_path):
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    source = copy_of_the_sources(tmp_path)
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for folder in ("csrc", "salsa_fused"):
        files = [
            p for p in (source / folder).rglob("*") if p.suffix in (".cpp", ".cu", ".h", ".py")
        ]
        assert {str(path.relative_to(source)) for path in files} <= names
