"""Backend `native` of a GPU on CPU tensors: csrc/'s own host code, and nvcc's PTX, translated."""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pybind11
import torch

from salsa_fused.kernels.backend import unfit_for_fast_kernels
from salsa_fused.kernels.backends import cuda as cuda_backend

from .library import FLAGS, HERE, SANITIZE, Threads, compiler, made_once, run
from .translate import translate

CSRC = HERE.parent.parent / "csrc"
NVCC = ["nvcc", "-std=c++17", "-O3", "-fmad=false", "-ptx"]
CXX = ["c++", "-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w"]
INCLUDES = [pybind11.get_include(), sysconfig.get_path("include")]


class OnTheCpu(cuda_backend.CudaBackend):
    """It serves CPU tensors; the name is another one, for the CPU has a backend `native`."""

    name = "nvcc"
    devices = ("cpu",)

    def refusal(self, weight: torch.Tensor, gradient_dtype: torch.dtype) -> str | None:
        return unfit_for_fast_kernels(weight, gradient_dtype)


def build(threads: Threads, architecture: int, csrc: Path = CSRC, *options: str) -> ModuleType:
    """Compile the sources in `csrc` for a GPU and for the host, and load what comes of it."""
    folder = threads.folder / f"nvcc_{architecture}" / "_".join([csrc.parent.name, *options])
    target = folder / f"_native_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"

    def make(unfinished: Path) -> None:
        ptx = folder / "kernels.ptx"
        run(*NVCC, *options, f"-arch=sm_{architecture}", csrc / "cuda_kernels.cu", "-o", ptx)
        translated = translate(ptx.read_text())
        (folder / "kernels.c").write_text(translated.code)
        (folder / "table.c").write_text(table(translated.kernels))
        for name in ("kernels", "table"):
            run(compiler(), *FLAGS, "-c", folder / f"{name}.c", "-o", folder / f"{name}.o")
        host = [*CXX, *SANITIZE, *(f"-I{path}" for path in (*INCLUDES, HERE / "include", csrc))]
        host += ['-DSALSA_CUDA_ARCHITECTURES="none"']
        run(*host, "-x", "c++", "-c", csrc / "cuda_kernels.cu", "-o", folder / "host.o")
        run(*host, "-c", csrc / "cuda_module.cpp", "-o", folder / "module.o")
        objects = [folder / f"{name}.o" for name in ("kernels", "table", "host", "module")]
        run(*CXX, *SANITIZE, "-shared", *objects, threads.path, "-o", unfinished)

    # a name of its own: pybind11 gives the same module again for a name that it has seen
    name = f"{folder.name.replace('.', '_')}_{architecture}._native_cuda"
    specification = importlib.util.spec_from_file_location(name, made_once(target, make))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def table(names: tuple[str, ...]) -> str:
    """C code that finds a kernel's PTX: its host function has the same name, by both compilers."""
    declared = "\n".join(f"void {name}(void);\nvoid ptx_{name}(void);" for name in names)
    entries = ",\n".join(f"{{{name}, ptx_{name}}}" for name in names)
    return f"""\
#include <stddef.h>
typedef void function(void);
{declared}
static const struct {{ function *host, *ptx; }} entries[] = {{
{entries}}};
function* _Z6ptx_ofPFvvE(function* host) {{
    for (size_t i = 0; i < sizeof entries / sizeof *entries; ++i)
        if (entries[i].host == host) return entries[i].ptx;
    return NULL;
}}
"""


@contextmanager
def serving(module: ModuleType) -> Iterator[None]:
    """Within it the backend launches this module's kernels."""
    before, cuda_backend.module = cuda_backend.module, module
    try:
        yield
    finally:
        cuda_backend.module = before
