"""`python -m bench paper`: every experiment in turn; a run that is through is never run again."""

import argparse
from functools import partial

from bench import console as c
from bench.paper.experiments import EXPERIMENTS
from bench.paper.problems import paper_problem
from bench.runs import Runner, collect
from bench.train import KEPT

QUICK_WORK, QUICK_SEEDS = 0.5, 2


def paper(arguments: argparse.Namespace) -> int:
    device = c.chosen_device(arguments.device)
    names = arguments.only or list(EXPERIMENTS)
    c.check_names("--only", names, EXPERIMENTS)
    runner = Runner(device, KEPT, arguments.again)
    work = QUICK_WORK if arguments.quick else 1.0
    for name in names:
        one = EXPERIMENTS[name]
        file = arguments.out / f"paper_{name}.json"
        c.check_writable(file)
        c.CONSOLE.print(f"\n[bold]{one.title}[/]")
        seeds = arguments.seeds or (QUICK_SEEDS if arguments.quick else one.seeds)
        known = one.quick if arguments.quick else one.problems
        wanted = [case for case in known if not arguments.data or case in arguments.data]
        if wanted:
            runner.run_all(
                wanted, partial(paper_problem, device=device, work=work), one.methods, seeds, file,
                partial(collect, name),
            )  # fmt: skip
    return 0
