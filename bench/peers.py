"""Other people's optimizers, as PyPI has them: installed once into a folder, without their needs.

Where one is installed in the environment already, that one is used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from bench.results import version
from bench.sets.fetch import CACHE, pip, shown

FOLDER = CACHE / "peers"
PEERS = {  # the module that is imported, and what pip is asked for
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


def versions() -> dict[str, str | None]:
    """The versions of all peers; None for one that is missing."""
    found: dict[str, str | None] = {}
    for module, requirement in PEERS.items():
        name = requirement.partition("==")[0]
        try:
            peer(module)
            found[name] = version(name)
        except MissingPeer:
            found[name] = None
    return found


def fetch_peers() -> dict[str, str]:
    """Install all peers into the folder; return what failed, and why."""
    failed: dict[str, str] = {}
    for requirement in PEERS.values():
        name, _, number = requirement.partition("==")
        if not (FOLDER / f"{name.replace('-', '_')}-{number}.dist-info").exists():
            print(f"Installing the peer {requirement} into {shown(FOLDER)}/.", flush=True)
            said = pip("install", "--no-deps", "--target", str(FOLDER), requirement)
            failed |= {requirement: said} if said is not None else {}
    return failed
