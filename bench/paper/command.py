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
from bench.runs import NothingRanError, Runner
from bench.sets.fetch import shown
from bench.tables import to_rich
from bench.train import KEPT

QUICK_WORK, QUICK_SEEDS, QUICK = 0.25, 1, "quick"


def paper(arguments: argparse.Namespace) -> int:
    device = c.chosen_device(arguments.device)
    names = arguments.only or [name for name, one in EXPERIMENTS.items() if not one.asked]
    c.check_names("--only", names, EXPERIMENTS)
    c.check_names("--data", arguments.data or (), PAPER_PROBLEMS)
    if arguments.seeds is not None and arguments.seeds < 1:
        raise SystemExit("--seeds: at least one")
    # What is quick stands beside what is not, in a folder of its own.
    out = arguments.out / QUICK if arguments.quick else arguments.out
    chosen = {name: problems_of(EXPERIMENTS[name], arguments) for name in names}
    if not any(chosen.values()):
        known = [case for name in names for case in EXPERIMENTS[name].problems]
        raise SystemExit(f"nothing to do: {', '.join(names)} has the problems {', '.join(known)}")
    runner, files = Runner(device, KEPT, arguments.again), []
    for name, problems in chosen.items():
        file = out / f"paper_{name}.json"
        c.check_writable(file)
        if problems:
            c.CONSOLE.print(f"\n[bold]{EXPERIMENTS[name].title}[/]")
            try:
                _run(name, problems, runner, arguments, file)
            except NothingRanError:
                continue  # why has been said; the other experiments count
            files.append(file)
    if not files:
        return 1
    for file in files:
        if file.stem in ("paper_tables", "paper_published"):
            show_tables(Results.read(file))
    show_claims(out)
    drawn = plots.draw(out, {file.stem: draw for file in files
                             if (draw := figures.PICTURES.get(file.stem))})  # fmt: skip
    c.CONSOLE.print(f"\nWrote {', '.join(map(shown, (*files, *drawn)))}.", markup=False)
    return 0


def problems_of(one: Experiment, arguments: argparse.Namespace) -> list[str]:
    known = one.quick if arguments.quick else one.problems
    return [case for case in known if not arguments.data or case in arguments.data]


def _run(
    name: str, problems: list[str], runner: Runner, arguments: argparse.Namespace, file: Path
) -> None:
    """Measure an experiment; after each of its problems the file is written anew."""
    one, quick = EXPERIMENTS[name], arguments.quick
    make = partial(paper_problem, device=runner.device, work=QUICK_WORK if quick else 1.0)
    seeds = arguments.seeds or (QUICK_SEEDS if quick else one.seeds)
    runner.run_all(problems, make, one.methods, seeds, file, partial(collect, name))


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
    c.CONSOLE.print(f"\n[bold]The claims[/]\n[dim]{CAPTION}[/]")
    for paper, table in claims_tables(folder).items():
        c.CONSOLE.print(f"\n[bold]{paper}[/]")
        for (claim,), (verdict, found, seeds) in table.rows.items():
            c.CONSOLE.print(f"[bold]{verdict.text}[/]: {claim} (seeds: {seeds.text})")
            for line in found.text.splitlines():
                c.CONSOLE.print(f"    {line}", style="dim")
