"""`python -m bench paper`: every experiment in turn; a run that is through is never run again."""

import argparse
from functools import partial
from pathlib import Path

from bench import console as c
from bench import plots
from bench.paper import figures
from bench.paper.claims import CAPTION, claims_tables
from bench.paper.collect import collect
from bench.paper.experiments import EXPERIMENTS, Experiment
from bench.paper.problems import PAPER_PROBLEMS, paper_problem
from bench.paper.published import accuracy_table, loss_table
from bench.results import Results
from bench.runs import Runner
from bench.sets.fetch import shown
from bench.tables import to_rich
from bench.train import KEPT

QUICK_WORK, QUICK_SEEDS = 0.25, 2


def paper(arguments: argparse.Namespace) -> int:
    device = c.chosen_device(arguments.device)
    names = arguments.only or [name for name, one in EXPERIMENTS.items() if not one.asked]
    c.check_names("--only", names, EXPERIMENTS)
    c.check_names("--data", arguments.data or (), {*PAPER_PROBLEMS})
    if arguments.seeds < 0:
        raise SystemExit("--seeds: at least one")
    runner = Runner(device, KEPT, arguments.again)
    for name in names:
        _run(name, EXPERIMENTS[name], runner, arguments)
    files = [arguments.out / f"paper_{name}.json" for name in names]
    files = [file for file in files if file.exists()]
    for file in files:
        if file.stem in ("paper_tables", "paper_published"):
            show_tables(Results.read(file))
    show_claims(arguments.out)
    drawn = plots.draw(arguments.out, figures.PICTURES)
    c.CONSOLE.print(f"\nWrote {', '.join(map(shown, (*files, *drawn)))}.")
    return 0


def _run(name: str, one: Experiment, runner: Runner, arguments: argparse.Namespace) -> None:
    """Measure an experiment on its problems; after each of them its file is written anew."""
    quick, only = arguments.quick, arguments.data
    wanted = [case for case in (one.quick if quick else one.problems) if not only or case in only]
    file = arguments.out / f"paper_{name}.json"
    c.check_writable(file)
    if wanted:
        c.CONSOLE.print(f"\n[bold]{one.title}[/]")
        make = partial(paper_problem, device=runner.device, work=QUICK_WORK if quick else 1.0)
        seeds = arguments.seeds or (QUICK_SEEDS if quick else one.seeds)
        runner.run_all(wanted, make, one.methods, seeds, file, partial(collect, name))


def show_tables(found: Results) -> None:
    """Tables I and II of what was measured here."""
    for make in (accuracy_table, loss_table):
        table = make(found)
        here = {names: cells for names, cells in table.rows.items() if names[0] == "here"}
        c.CONSOLE.print(f"\n[bold]{make.__doc__}[/]")
        c.CONSOLE.print(to_rich(table._replace(rows=here), c.CONSOLE.width))
        c.CONSOLE.print(table.caption, style="dim")


def show_claims(folder: Path) -> None:
    """Every claim that was measured, its verdict, and what each problem says."""
    for paper, table in claims_tables(folder).items():
        c.CONSOLE.print(f"\n[bold]{paper}[/]")
        for (claim,), (verdict, found, seeds) in table.rows.items():
            c.CONSOLE.print(f"[bold]{verdict.text}[/]: {claim} ({seeds.text} seeds)")
            for line in found.text.split("; "):
                c.CONSOLE.print(f"    {line}", style="dim")
    c.CONSOLE.print(CAPTION, style="dim")
