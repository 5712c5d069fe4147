"""FusedSaLSa beside Adam on two small problems, for the same work, in about two minutes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from bench import problems, results
from bench.collect import collect
from bench.devices import add_device, chosen_device
from bench.optimizers import FUSED_SALSA
from bench.others import ADAM
from bench.plots import draw_demo
from bench.runs import Runner
from bench.tables import demo_table, to_rich
from bench.verdict import demo_verdict

METHODS = (FUSED_SALSA, ADAM)
QUICK = 5  # --quick divides the work by this
OUT = Path("bench/results/demo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        choices=range(1, 101),
        metavar="N",
        help="runs of each optimizer on each problem (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"1/{QUICK} of the work: to see that all is in place"
    )
    add_device(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=OUT,
        metavar="DIR",
        help="what to write into (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the data goes (default: DIR/demo.json)"
    )


def main(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    console = Console(highlight=False)
    device = chosen_device(arguments.device)
    share = 1 / QUICK if arguments.quick else 1.0
    cases = [
        problems.digits_cnn(device, round(share * problems.DIGITS_STEPS)),
        problems.plays_gpt(device, round(share * problems.GPT_STEPS)),
    ]
    console.print(
        f"Training with {' and '.join(method.name for method in METHODS)}, {arguments.seeds} seeds "
        f"each, on {results.device_name(device)}:"
    )
    for case in cases:
        console.print(f"  {case.title}: {case.description}")
    runner = Runner(device, console)
    make_methods = [lambda method=method: method for method in METHODS]
    done = {case.case: runner.run_all(case, make_methods, arguments.seeds) for case in cases}
    measured = collect("demo", cases, done, device)

    data = arguments.json or arguments.out / "demo.json"
    measured.write(data)
    pictures = draw_demo(measured, arguments.out)

    table = demo_table(measured)
    console.print(to_rich(table))
    console.print(table.caption, style="dim")
    console.print()
    if arguments.quick:
        console.print("(--quick: too short a run to tell the optimizers apart.)")
    for sentence in demo_verdict(measured):
        console.print(sentence)
    console.print(f"\nWrote {', '.join(str(path) for path in [data, *pictures])}.")
    console.print(f"{time.perf_counter() - start:.0f} seconds in all.")
    return 0
