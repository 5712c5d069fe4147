"""`--seeds` and `--work`, the same for every command that trains."""

from __future__ import annotations

import argparse
import math


def add_amount(parser: argparse.ArgumentParser, seeds: int) -> None:
    parser.add_argument(
        "--seeds", type=int, default=seeds, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--work", type=float, default=1.0, metavar="X", help="X times the usual number of steps"
    )


def check_amount(arguments: argparse.Namespace) -> None:
    if arguments.seeds < 1 or not 0 < arguments.work < math.inf:
        raise SystemExit("--seeds and --work: at least one seed, and some work")
