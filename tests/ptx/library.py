"""Translated PTX, compiled and loaded; and how its kernels are launched."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .translate import translate

HERE = Path(__file__).parent
ORDERS = ("forward", "reverse", "random")  # as `enum order` in threads.c

# SALSA_FUSED_SANITIZE: as `make sanitize` has it; reads and writes out of bounds end the process
SANITIZE = ["-fsanitize=address"] if os.environ.get("SALSA_FUSED_SANITIZE", "0") != "0" else []
FLAGS = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-w", f"-I{HERE}", *SANITIZE]


def compiler() -> str:
    return os.environ.get("CC") or "cc"


class PtxError(RuntimeError):
    """A kernel failed: an access that is not aligned, a barrier that not all threads reach, ..."""


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Return `target`, made by the first process that needs it; `make` is given where to write."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = target.with_suffix(".tmp")
            make(unfinished)
            unfinished.rename(target)
    return target


def run(*command: str | Path) -> None:
    # the sanitizer is for what runs in this process, not for compilers
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment
    )
    if done.returncode != 0:
        raise RuntimeError(f"{done.args[0]} failed:\n{(done.stderr or done.stdout)[:3000]}")


class Threads:
    """threads.c, compiled into a folder: what all kernels there are linked with."""

    def __init__(self, folder: Path):
        def make(target: Path) -> None:
            run(compiler(), *FLAGS, HERE / "threads.c", "-o", target)

        self.folder = folder
        self.path = made_once(folder / "libthreads.so", make)
        self.library = ctypes.CDLL(str(self.path), mode=ctypes.RTLD_GLOBAL)
        self.library.ptx_message.restype = ctypes.c_char_p

    def kernel(self, ptx: str) -> Kernel:
        """Translate a file with one kernel, and load it."""
        translated = translate(ptx)
        (name,) = translated.kernels
        digest = hashlib.sha256(translated.code.encode()).hexdigest()[:24]

        def make(target: Path) -> None:
            source = target.with_suffix(".c")
            source.write_text(translated.code)
            run(compiler(), *FLAGS, source, self.path, f"-Wl,-rpath,{self.folder}", "-o", target)

        path = made_once(self.folder / f"{digest}.so", make)
        return Kernel(self, getattr(ctypes.CDLL(str(path)), f"ptx_{name}"))

    @contextmanager
    def in_order(self, order: str, seed: int = 0) -> Iterator[None]:
        """Within it a block's threads, and the blocks, take turns in this order."""
        self.library.ptx_set_order(ORDERS.index(order), ctypes.c_uint64(seed))
        try:
            yield
        finally:
            self.library.ptx_set_order(0, ctypes.c_uint64(0))


class Kernel:
    """One that can be launched."""

    def __init__(self, threads: Threads, function: object):
        self._threads, self._function = threads, function

    def launch(self, blocks: int, threads: int, arguments: Sequence[ctypes._SimpleCData]) -> None:
        """Run it to its end.

        Raises:
            PtxError: what a GPU would refuse, or wait for without end.
        """
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        library = self._threads.library
        if library.ptx_launch(self._function, blocks, threads, addresses):
            raise PtxError(library.ptx_message().decode())


@cache
def threads_in(folder: Path) -> Threads:
    return Threads(folder)
