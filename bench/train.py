"""What training reaches: FusedSaLSa beside tuned AdamW and beside learning-rate-free optimizers.

All do the same work: a forward counts 1, a backward 2, whoever asks for it.  Every run is kept
when it is through, so that a command that was stopped goes on where it was.
"""

import argparse
from functools import partial

from bench import console as c
from bench.methods import ADAM
from bench.optimizers import FAMILY, FUSED_SALSA, METHODS
from bench.plots import draw_demo
from bench.problems import PROBLEMS
from bench.ranks import summary_table
from bench.results import REPOSITORY, device_name
from bench.runs import Runner, collect
from bench.tables import by_case, to_rich

KEPT = REPOSITORY / "bench" / ".runs"


def train(arguments: argparse.Namespace) -> int:
    device = c.chosen_device(arguments.device)
    bench = "family" if arguments.family else "train"
    known = {method.name: method for method in (FAMILY if arguments.family else METHODS)}
    names = dict.fromkeys(arguments.data or PROBLEMS)
    wanted = arguments.optimizers or known
    c.check_amount(arguments)
    c.check_names("--optimizers", wanted, known)
    c.check_names("--data", [*names, *arguments.without], PROBLEMS)
    file = arguments.json or c.LOCAL / f"{bench}.json"
    c.check_writable(file)
    runner = Runner(device, KEPT, arguments.again)
    measured = runner.run_all(
        [name for name in names if name not in arguments.without],
        lambda name: PROBLEMS[name](name, device).scaled(arguments.work),
        lambda _: [method for name, method in known.items() if name in wanted],
        arguments.seeds, file, partial(collect, bench),
    )  # fmt: skip
    if runner.reused:
        c.CONSOLE.print(f"{runner.reused} runs were there already (--again measures them anew).")
    c.CONSOLE.print(to_rich(summary_table(measured), c.CONSOLE.width))
    return c.finish(measured, by_case(measured), file)


def demo(arguments: argparse.Namespace) -> int:
    """FusedSaLSa beside Adam on two small problems, in about two minutes."""
    device = c.chosen_device(arguments.device)
    c.check_amount(arguments)
    file, picture = arguments.out / "demo.json", arguments.out / "demo.png"
    c.CONSOLE.print(
        f"Training with FusedSaLSa and Adam, {arguments.seeds} seeds each, on "
        f"{device_name(device)}:"
    )
    measured = Runner(device).run_all(
        ("digits-cnn", "plays-gpt"), lambda name: PROBLEMS[name](name, device),
        lambda _: (FUSED_SALSA, ADAM), arguments.seeds, file, partial(collect, "demo"),
    )  # fmt: skip
    draw_demo(measured, picture)
    return c.finish(measured, by_case(measured), file, picture)
