"""Builds the kernels with ninja; everything else about the package stands in pyproject.toml.

Neither torch nor a GPU is looked at here.  Without a working C++ compiler the pure-Python package
is installed all the same, without a working nvcc the CPU's kernels alone, and
`python -m salsa_fused` says what is missing.  From the environment:

CXX, CUDA_HOME           the compilers, where they are not on PATH
SALSA_FUSED_CUDA_ARCHS   such as "8.6;9.0", in place of the default ones
SALSA_FUSED_SKIP_CUDA    1: leave the CUDA kernels out
SALSA_FUSED_FORCE_CUDA   1: an installation without them is an error
SALSA_FUSED_SANITIZE     1: what `make sanitize` sets
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
HEADERS = ("directions", "formats", "rows", "storage", "sums")
SHARED = [f"csrc/{name}.h" for name in HEADERS]
CPU = Extension(
    "salsa_fused._native",
    ["csrc/columns.cpp", "csrc/cpu_kernels.cpp", "csrc/module.cpp"],
    depends=[f"csrc/{name}.h" for name in ("cpu_kernels", "cpu_mixed", "dlpack", "halves")]
    + SHARED,
    optional=True,
)
CUDA = Extension(
    "salsa_fused._native_cuda",
    ["csrc/cuda_kernels.cu", "csrc/cuda_module.cpp"],
    depends=["csrc/cuda_kernels.h", "csrc/cuda_mixed.h", *SHARED],
    optional=True,
)

# A100, A40, L4 and RTX 40, H100 and H200, B200, RTX 50; nvcc leaves out those it does not know
ARCHITECTURES = (80, 86, 89, 90, 100, 120)

# No -ffast-math: the same bits on every machine are worth more (see csrc/directions.h).
CXX_FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    "-DNDEBUG",  # asserts of included headers would put this machine's paths into the binary
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
]

# The same bits as on the CPU; no -lineinfo and no -G, which would put paths into the binary.
NVCC_FLAGS = [
    *("-std=c++17", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"),
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
rule nvcc
  command = $nvcc $nvcc_flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $in
rule link
  command = $linker $in -o $out $link_flags
  description = link $out
"""


class NinjaBuild(build_ext):
    """One object per source, in parallel, rebuilt only where a source or header changed."""

    def build_extension(self, ext):
        reason = None
        try:
            if ext is CUDA:
                self.build_cuda(ext)
            elif self.compiler.compiler_type == "msvc":
                ext.extra_compile_args = ["/O2", "/std:c++17", "/openmp", "/fp:precise"]
                ext.include_dirs.append(pybind11_include())
                super().build_extension(ext)
            else:
                self.build_cpu(ext)
        except Exception as error:  # any failure leaves a working pure-Python package
            self.remove_what_was_built_before(ext)
            if ext is CUDA and wanted("SALSA_FUSED_FORCE_CUDA"):
                raise
            reason = " ".join(str(error).replace(f"{HERE}/", "").split()) or type(error).__name__
            self.say_what_is_missing(ext, reason)
        self.leave_note(ext, reason)

    def finalize_options(self):
        super().finalize_options()
        self.beside_the_sources = self.inplace  # setuptools forgets it while it builds

    def folders(self, ext):
        """Where the module goes, and where an editable installation looks for it."""
        found = [Path(self.get_ext_fullpath(ext.name)).resolve().parent]
        if self.beside_the_sources or getattr(self, "editable_mode", False):
            found.append(HERE / "salsa_fused")
        return found

    def remove_what_was_built_before(self, ext):
        """An older module may have another table than the Python beside it."""
        name = Path(self.get_ext_fullpath(ext.name)).name
        for folder in self.folders(ext):
            (folder / name).unlink(missing_ok=True)

    def say_what_is_missing(self, ext, reason):
        kernels, rest = "C++ kernels", "The pure-Python package is installed; it is slower."
        if ext is CUDA:
            kernels, rest = "CUDA kernels", "GPUs are served by Triton, or else slowly."
        lines = [f"salsa_fused: the {kernels} were not built: {reason}", rest]
        rule = "!" * 78
        print("\n".join([rule, *lines, rule]), file=sys.stderr)

    def build_cpu(self, ext):
        cxx = find_compiler()
        sanitize = SANITIZE_FLAGS if wanted("SALSA_FUSED_SANITIZE") else []
        openmp = ["-fopenmp"] if compiles_with(cxx, "-fopenmp") else []
        shared = ["-shared"]
        if sys.platform == "darwin":
            shared = ["-bundle", "-undefined", "dynamic_lookup"]
        flags = [*CXX_FLAGS, *sanitize, *openmp, *self.includes()]
        self.build_with_ninja(
            ext, cxx=[cxx], flags=flags, linker=[cxx], link_flags=shared + sanitize + openmp
        )

    def build_cuda(self, ext):
        if wanted("SALSA_FUSED_SKIP_CUDA"):
            raise RuntimeError("SALSA_FUSED_SKIP_CUDA is set")
        if self.compiler.compiler_type == "msvc" or sys.platform == "darwin":
            raise RuntimeError("they are built on Linux only")
        nvcc, cxx = find_nvcc(), find_compiler()
        architectures = choose_architectures(nvcc)
        newest = architectures[-1]
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        names = ",".join(f"{a // 10}.{a % 10}" for a in architectures)
        define = f'-DSALSA_CUDA_ARCHITECTURES=\\"{names}\\"'
        self.build_with_ninja(
            ext,
            cxx=[cxx],
            flags=[*CXX_FLAGS, define, *self.includes()],
            nvcc=[nvcc, "-ccbin", cxx],
            nvcc_flags=[*NVCC_FLAGS, *targets],
            linker=[nvcc, "-ccbin", cxx],
            link_flags=["-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL"],
        )

    def includes(self):
        python_headers = self.compiler.include_dirs  # a list that distutils filled
        return [f"-I{path}" for path in [pybind11_include(), *python_headers]]

    def build_with_ninja(self, ext, **variables):
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve() / ext.name
        work.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = [NINJA_FILE]
        lines += [f"{name} = {' '.join(map(quoted, value))}" for name, value in variables.items()]
        objects = [work / (Path(source).name + ".o") for source in ext.sources]
        for source, output in zip(ext.sources, objects):
            rule = "nvcc" if source.endswith(".cu") else "compile"
            lines.append(f"build {escaped(output)}: {rule} {escaped(HERE / source)}")
        lines.append(f"build {escaped(target)}: link {' '.join(escaped(o) for o in objects)}")
        (work / "build.ninja").write_text("\n".join(lines) + "\n")
        run([find_ninja(), "-C", str(work), str(target)])

    def leave_note(self, ext, reason):
        """What `python -m salsa_fused` says about this build."""
        name = "cuda" if ext is CUDA else "native"
        for folder in self.folders(ext):
            folder.mkdir(parents=True, exist_ok=True)
            note = folder / "_build.json"
            try:
                known = json.loads(note.read_text())
            except (OSError, ValueError):  # there is none yet, or it is broken
                known = {}
            note.write_text(json.dumps({**known, name: reason}) + "\n")


def find_compiler():
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = name and shutil.which(name)
        if path:
            return path
    raise RuntimeError("no C++ compiler was found (c++, g++ or clang++ on PATH, or $CXX)")


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = (home and shutil.which(str(Path(home) / "bin" / "nvcc"))) or shutil.which("nvcc")
    if path is None:
        raise RuntimeError("nvcc was not found (on PATH, or in $CUDA_HOME/bin)")
    return path


def choose_architectures(nvcc):
    """Those asked for or the default ones, as numbers (86 is 8.6), as far as this nvcc has them."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    if listed.returncode != 0:
        raise RuntimeError(f"{nvcc} --list-gpu-arch failed: {listed.stderr or listed.stdout}")
    known = {int(number) for number in re.findall(r"compute_(\d+)\b", listed.stdout)}
    asked = re.split(r"[;,\s]+", os.environ.get("SALSA_FUSED_CUDA_ARCHS", "").strip())
    asked = [name for name in asked if name]
    for name in asked:
        if not re.fullmatch(r"\d{1,2}\.\d|\d{2,3}", name):
            raise RuntimeError(
                f"SALSA_FUSED_CUDA_ARCHS names {name!r}: write compute capabilities, as 8.6;9.0"
            )
    numbers = [int(name.replace(".", "")) for name in asked]
    chosen = sorted(set(numbers or ARCHITECTURES) & known)
    unknown = set(numbers) - known
    if unknown or not chosen:
        raise RuntimeError(f"nvcc knows {sorted(known)}, and not {sorted(unknown)}")
    return chosen


def wanted(variable):
    return os.environ.get(variable, "0") not in ("", "0")


def find_ninja():
    if path := shutil.which("ninja"):
        return path
    try:
        import ninja  # its package, where a virtual environment's programs are not on PATH
    except ImportError:
        raise RuntimeError("ninja was not found (pip install ninja)") from None
    return str(Path(ninja.BIN_DIR) / "ninja")


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
    ext_modules=[CPU, CUDA],
    cmdclass={"build_ext": NinjaBuild},
)
