"""Builds the C++ kernels with ninja; everything else about the package stands in pyproject.toml.

Neither torch nor a GPU is looked at here.  Without a working compiler the pure-Python package is
installed all the same, and `python -m salsa_fused` says what is missing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
SOURCES = ["csrc/cpu_kernels.cpp", "csrc/module.cpp"]
HEADERS = ["csrc/adam.h", "csrc/cpu_kernels.h", "csrc/storage.h"]

# No -ffast-math: the same bits on every machine are worth more (see csrc/adam.h).
CXX_FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
]

# `make sanitize`: reads and writes out of bounds and undefined behaviour end the process.
SANITIZE_FLAGS = [
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *("-fno-omit-frame-pointer", "-g"),
]

NINJA_FILE = """\
rule compile
  command = $cxx $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $in
rule link
  command = $cxx $in -o $out $link_flags
  description = link $out
"""


class NinjaBuild(build_ext):
    """One object per source, in parallel, rebuilt only where a source or header changed."""

    def build_extension(self, ext):
        reason = None
        try:
            if self.compiler.compiler_type == "msvc":
                ext.extra_compile_args = ["/O2", "/std:c++17", "/openmp", "/fp:precise"]
                ext.include_dirs.append(pybind11_include())
                super().build_extension(ext)
            else:
                self.build_with_ninja(ext)
        except Exception as error:  # any failure leaves a working pure-Python package
            reason = " ".join(str(error).split()) or type(error).__name__
            rule = "!" * 78
            print(
                f"{rule}\nsalsa_fused: the C++ kernels were not built: {reason}\n"
                f"The pure-Python package is installed; it is slower.\n{rule}",
                file=sys.stderr,
            )
        self.leave_note(ext, reason)

    def build_with_ninja(self, ext):
        cxx = find_compiler()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        sanitize = SANITIZE_FLAGS if os.environ.get("SALSA_FUSED_SANITIZE") else []
        openmp = ["-fopenmp"] if compiles_with(cxx, "-fopenmp") else []
        python_headers = self.compiler.include_dirs  # a list that distutils filled
        includes = [f"-I{path}" for path in [pybind11_include(), *python_headers]]
        shared = ["-shared"]
        if sys.platform == "darwin":
            shared = ["-bundle", "-undefined", "dynamic_lookup"]
        objects = [work / (Path(source).stem + ".o") for source in ext.sources]
        lines = [
            NINJA_FILE,
            f"cxx = {quoted(cxx)}",
            f"flags = {' '.join(quoted(f) for f in [*CXX_FLAGS, *sanitize, *openmp, *includes])}",
            f"link_flags = {' '.join(shared + sanitize + openmp)}",
        ]
        for source, output in zip(ext.sources, objects):
            lines.append(f"build {escaped(output)}: compile {escaped(HERE / source)}")
        lines.append(f"build {escaped(target)}: link {' '.join(escaped(o) for o in objects)}")
        (work / "build.ninja").write_text("\n".join(lines) + "\n")
        run([find_ninja(), "-C", str(work), str(target)])

    def leave_note(self, ext, reason):
        """What `python -m salsa_fused` says about this build."""
        folders = [Path(self.get_ext_fullpath(ext.name)).resolve().parent]
        if getattr(self, "editable_mode", False):
            folders.append(HERE / "salsa_fused")
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build.json").write_text(json.dumps({"native": reason}) + "\n")


def find_compiler():
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = name and shutil.which(name)
        if path:
            return path
    raise RuntimeError("no C++ compiler was found (c++, g++ or clang++ on PATH, or $CXX)")


def find_ninja():
    path = shutil.which("ninja")
    if path is None:
        raise RuntimeError("ninja was not found (pip install ninja)")
    return path


def pybind11_include():
    import pybind11

    return pybind11.get_include()


def compiles_with(cxx, flag):
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [cxx, flag, str(source), "-o", str(Path(folder) / "probe")]
        return subprocess.run(command, capture_output=True).returncode == 0


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    if done.returncode != 0:
        last_lines = " | ".join(done.stdout.strip().splitlines()[-3:])
        raise RuntimeError(f"the build failed: {last_lines}")


def quoted(text):
    return f'"{text}"' if " " in str(text) else str(text)


def escaped(path):
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    ext_modules=[Extension("salsa_fused._native", SOURCES, depends=HEADERS, optional=True)],
    cmdclass={"build_ext": NinjaBuild},
)
