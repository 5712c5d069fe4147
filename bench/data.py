"""All data and peers, once, into `bench/.data`: copied there, they need no network elsewhere."""

import argparse
import sys
from collections.abc import Callable
from functools import partial

from bench.peers import fetch_peers
from bench.problems import BEFORE, weights_before
from bench.sets.fetch import CACHE, PLAYS, DataError, fetch, shown
from bench.sets.reviews import prepare


def data(arguments: argparse.Namespace) -> int:
    """Fetch and train what can be had; the exit code is 1 where anything is missing."""
    missing = []
    gets: list[Callable[[], object]] = [partial(fetch, PLAYS), prepare]
    gets += [partial(weights_before, case) for case in BEFORE]
    for get in gets:
        try:
            get()
        except DataError as error:
            missing.append(str(error))
    missing += fetch_peers()
    size = sum(file.stat().st_size for file in CACHE.rglob("*") if file.is_file())
    print(f"{shown(CACHE)}/ holds {size / 1e6:.0f} MB.")
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    return int(bool(missing))
