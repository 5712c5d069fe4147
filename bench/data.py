"""All data and peers, once, into one folder: everything else then runs without network.

Copy `bench/.data` to another machine and the benchmarks run there.
"""

from __future__ import annotations

import argparse
import sys

from bench import peers
from bench.problems import BEFORE, weights_before
from bench.sets.fetch import CACHE, DataError, fetch, shown
from bench.sets.reviews import prepared
from bench.sets.text import PLAYS


def data(arguments: argparse.Namespace) -> int:
    """Fetch and train what can be had; the exit code is 1 where anything is missing."""
    missing = []
    for get in (lambda: fetch(PLAYS), prepared, trained):
        try:
            get()
        except DataError as error:
            missing.append(str(error))
    missing += [f"{what}: {why}" for what, why in peers.fetch_peers().items()]
    size = sum(file.stat().st_size for file in CACHE.rglob("*") if file.is_file())
    print(f"{shown(CACHE)}/ holds {size / 1e6:.0f} MB.")
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    return int(bool(missing))


def trained() -> None:
    """The weights that problems go on from."""
    for case in BEFORE:
        weights_before(case)
