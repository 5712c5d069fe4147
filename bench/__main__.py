"""`python -m bench COMMAND` runs the module of this package with that name.

A command's module offers `add_arguments(parser)` and `main(arguments)`, which returns the exit
code.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from bench.sets.fetch import DataError

COMMANDS = {
    "demo": "train two small models with FusedSaLSa and with Adam, for the same work",
    "data": "fetch all data and the other optimizers, once; the rest then needs no network",
    "train": "what training reaches, beside tuned AdamW and learning-rate-free optimizers",
    "swapin": "train loops as people write them, with their optimizer and with FusedSaLSa",
    "step": "time whole training steps on real architectures, beside AdamW and others",
    "memory": "peak memory of a training step, beside AdamW's and others'",
    "kernels": "time the three kernels beside a copy and torch's Adam",
    "host": "time what a plain step costs the host, beside torch's fused Adam",
    "compiled": "what Triton compiles the kernels to: registers, spills, wide accesses",
    "report": "make plots and tables, those of README.md too, from the results",
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in arguments[:1]:  # no other command's imports are needed
            module = _load(name)
            module.add_arguments(command)
    options = parser.parse_args(arguments)
    try:
        return module.main(options)
    except DataError as error:
        sys.exit(f"{options.command}: {error}")
    except KeyboardInterrupt:
        print(f"\n{options.command}: stopped; finished training runs are kept", file=sys.stderr)
        return 130


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"bench.{name}")
    except ModuleNotFoundError as missing:
        sys.exit(f"{name}: {missing}. The benchmarks need: pip install -e '.[bench]'")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
