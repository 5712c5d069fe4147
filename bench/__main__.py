"""`python -m bench COMMAND` calls the function of that name with its options, which stand here."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.sets.fetch import DataError

LOCAL = "bench/results/local"
# The module, what the command does, and its options with their defaults.
COMMANDS = {
    "demo": ("train", "train two small models with FusedSaLSa and with Adam, for the same work",
             "--seeds=3 --device --out=bench/results/demo"),
    "data": ("data", "fetch all data and the other optimizers into bench/.data, once; the rest "
             "then needs no network", ""),
    "train": ("train", "what training reaches, beside tuned AdamW and learning-rate-free "
              "optimizers", "--device --data --without --optimizers --family --seeds=3 --work=1 "
              "--again --json"),
    "paper": ("paper.command", "do the papers' claims hold? (3.5 hours; --quick: 12 minutes)",
              f"--quick --device --only --data --seeds --again --out={LOCAL}"),
    "swapin": ("swapin", "train loops as people write them, with their optimizer and with "
               "FusedSaLSa",
               f"--seeds=2 --work=1 --only --settings={{}} --json={LOCAL}/swapin.json"),
    "step": ("steps", "time whole training steps on real architectures, beside AdamW and others",
             f"--device --rounds=10 --json={LOCAL}/step.json"),
    "memory": ("steps", "peak memory of a training step, beside AdamW's and others'",
               f"--device --json={LOCAL}/memory.json"),
    "kernels": ("kernels", "time the three kernels beside a copy and torch's Adam",
                f"--device=cpu --rounds=40 --json={LOCAL}/kernels.json"),
    "host": ("kernels", "time what a plain step costs the host, beside torch's fused Adam",
             f"--device=cpu --rounds=400 --json={LOCAL}/host.json"),
    "gpu": ("gpu", "the first hour on a GPU: tests, sanitizers, benches, report, a summary",
            "--out=bench/results"),
    "report": ("report", "make plots and tables, those of README and docs too, from the results",
               "--folder --check"),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "--device": {"choices": ("cpu", "cuda"), "help": "a GPU where there is one, if not said"},
    "--json": {"type": Path, "metavar": "FILE", "help": "where the results go"},
    "--seeds": {"type": int, "metavar": "N", "help": "runs of each optimizer on each problem"},
    "--work": {"type": float, "metavar": "X", "help": "X times the usual number of steps"},
    "--rounds": {"type": int, "metavar": "N", "help": "how often everything is timed"},
    "--out": {"type": Path, "metavar": "DIR", "help": "what to write into"},
    "--data": {"nargs": "+", "metavar": "CASE", "help": "problems (default: all)"},
    "--without": {"nargs": "+", "metavar": "CASE", "default": [], "help": "not these"},
    "--optimizers": {"nargs": "+", "metavar": "NAME", "help": "only these (default: all)"},
    "--family": {"action": "store_true", "help": "the papers' other systems, beside FusedSaLSa"},
    "--again": {"action": "store_true", "help": "measure anew what was measured before"},
    "--only": {"nargs": "+", "metavar": "NAME", "help": "only these of the parts"},
    "--quick": {"action": "store_true", "help": "a quarter of the steps, one seed, few problems"},
    "--settings": {"type": json.loads, "metavar": "JSON",
                   "help": """keyword arguments for FusedSaLSa: '{"lr": 0.5}'"""},
    "--folder": {"type": Path, "metavar": "DIR", "help": "only this folder's page and plots"},
    "--check": {"action": "store_true", "help": "write nothing; exit 1 if it differs"},
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, summary, options) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        for option in options.split():
            flag, _, default = option.partition("=")
            how = dict(OPTIONS[flag])
            if default:  # it is read as if it had been typed
                how |= {"default": default, "help": f"{how['help']} (default: %(default)s)"}
            command.add_argument(flag, **how)
    chosen = parser.parse_args(arguments)
    try:  # no other command's imports are needed
        module = importlib.import_module(f"bench.{COMMANDS[chosen.command][0]}")
        return getattr(module, chosen.command)(chosen)
    except ModuleNotFoundError as missing:
        sys.exit(f"{chosen.command}: {missing}. The benchmarks need: pip install -e '.[bench]'")
    except DataError as error:
        sys.exit(f"{chosen.command}: {error}")
    except KeyboardInterrupt:
        print(f"\n{chosen.command}: stopped; finished training runs are kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
