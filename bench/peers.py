"""Other people's optimizers, as PyPI has them: installed once into a folder, without their needs.

Where one is installed in the environment already, that one is used.
"""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

from bench.sets.fetch import CACHE, pip, shown

FOLDER = CACHE / "peers"
# The module that is imported, and what pip is asked for.
PEERS = {
    "salsa.SaLSA": "SaLSa-Optimizer==0.1.0",
    "prodigyopt": "prodigyopt==1.1.2",
    "dadaptation": "dadaptation==3.2",
    "schedulefree": "schedulefree==1.4.1",
    "GeN": "gen-optim==0.1.1",
    "momo": "momo-opt==0.1.0",
    "sps_safe": "sps_safe==1.0.0",
}


class MissingPeer(RuntimeError):
    """A peer is not installed; the message says what to do."""


def peer(module: str) -> ModuleType:
    """The module of a peer; `MissingPeer` where neither environment nor folder has it."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeer(f"{PEERS[module]} is missing ({error}): python -m bench data") from None


def version(module: str) -> str | None:
    """The version of a peer that is there, else None."""
    try:
        peer(module)
        return metadata.version(PEERS[module].partition("==")[0])
    except (MissingPeer, metadata.PackageNotFoundError):
        return None


def versions() -> dict[str, str | None]:
    """Of all peers; None for one that is missing."""
    return {
        requirement.partition("==")[0]: version(module) for module, requirement in PEERS.items()
    }


def fetch_peers(folder: Path = FOLDER) -> dict[str, str]:
    """Install all peers into `folder`; what failed, and why."""
    failed = {}
    for requirement in PEERS.values():
        name, _, number = requirement.partition("==")
        if (folder / f"{name.replace('-', '_')}-{number}.dist-info").exists():
            continue
        print(f"Installing the peer {requirement} into {shown(folder)}/.", flush=True)
        said = pip("install", "--no-deps", "--target", str(folder), requirement)
        if said is not None:
            failed[requirement] = said
    return failed
