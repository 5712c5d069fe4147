"""Training runs by the dozen: in turn, with progress, each kept so that a stop loses nothing.

`collect` makes one file of results of them.
"""

import hashlib
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from rich.progress import Progress, TaskID

from bench import console as c
from bench import results
from bench.methods import Method, closure_step
from bench.peers import versions
from bench.ranks import or_infinite
from bench.results import REPOSITORY, Curve, Results, Row
from bench.sets.fetch import whole
from bench.training import FINAL_SHARE, Case, Checkpoint, Problem, Run

TUNING_SEED = 1000  # none of the seeds that count
# Sources that decide what a run does, and those that do where FusedSaLSa is run.
SOURCES = (
    "methods", "optimizers", "peers", "training", "problems", "models", "networks", "sets/*",
    "paper/problems", "paper/fine_tuning", "paper/hub", "paper/methods",
)  # fmt: skip
NAMED = ("settings", "schedules", "units")  # of ours, that others' optimizers are built with, too
OURS = ("salsa_fused/**/*.py", "csrc/*")
WARM_UP = 20  # steps: the first search looks for the order of magnitude, and that costs more
BAR = TaskID(0)  # the only one


@cache
def code(ours: bool) -> str:
    """A digest of the sources that decide what a run does."""
    patterns = [f"bench/{name}.py" for name in SOURCES]
    patterns += OURS if ours else [f"salsa_fused/{name}.py" for name in NAMED]
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in REPOSITORY.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def path_of(folder: Path, case: Problem, method: Method, seed: int, device: torch.device) -> Path:
    """Where a run is kept: it is measured again where settings, sources or machine differ."""
    where = results.environment(device)
    key = (
        case.case, case.description, case.plain_steps, case.checkpoints, case.in_steps,
        method.name, method.settings, seed, code(method.step is closure_step), versions(),
        *(where[name] for name in ("device", "threads", "torch", "python")),
    )  # fmt: skip
    name = re.sub(r"\W+", "-", f"{case.case} {method.name} {seed}")
    return folder / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.pickle"


@dataclass
class Done:
    """One method on one case: the best learning rate of its grid, and a run for every seed."""

    method: Method
    lr: float | None = None  # where there is a grid
    runs: list[Run] = field(default_factory=list)

    @property
    def chosen(self) -> Method:
        return self.method if self.lr is None else self.method.grid[self.lr]


class NothingRanError(SystemExit):
    """Nothing of what was asked for could be run."""


@dataclass
class Runner:
    """Runs every method on every case; what cannot run is said, and left out."""

    device: torch.device
    folder: Path | None = None  # where runs are kept
    again: bool = False  # measure what is there already, too
    missing: dict[str, str] = field(default_factory=dict)
    reused: int = 0
    commits: set[str] = field(default_factory=set)  # that the runs are of

    def run_all(
        self, names: Iterable[str], make: Callable[[str], Case],
        methods: Callable[[Any], Sequence[Method]], seeds: int, file: Path,
        collect: Callable[[dict[Any, list[Done]], "Runner"], Results],
    ) -> Results:  # fmt: skip
        """Make every case and run its methods; after each one the file is written anew."""
        done: dict[Case, list[Done]] = {}
        for name in names:
            case: Case | None = None
            with c.left_out(self.missing, name):
                case = make(name)
            if case is None:
                continue
            c.CONSOLE.print(f"{case.title}: {case.description}; {case.plain_steps} steps")
            if found := self.run(case, methods(case), seeds):
                done[case] = found
                measured = collect(done, self)
                measured.write(file)
        if not done:
            raise NothingRanError("nothing could be run")
        return measured

    def run(self, case: Case, methods: Sequence[Method], seeds: int) -> list[Done]:
        """The methods take turns, also in going first: a busy machine slows all of them down."""
        found = []
        with Progress(*Progress.get_default_columns(), console=c.CONSOLE) as self.bar:
            self.bar.add_task(case.title, total=sum(seeds + len(one.grid) for one in methods))
            for method in methods:
                with c.left_out(self.missing, f"{case.title}: {method.name}"):
                    found.append(self._tuned(case, method))
            for seed in range(seeds):
                for done in found if seed % 2 == 0 else reversed(found):
                    if len(done.runs) == seed:  # else a seed before has failed
                        with c.left_out(self.missing, f"{case.title}: {done.method.name}"):
                            what = f"seed {seed + 1} of {seeds}"
                            done.runs.append(self._run(case, done.chosen, seed, what))
        return [done for done in found if len(done.runs) == seeds]

    def _tuned(self, case: Any, method: Method) -> Done:
        """Choose from the grid by validation loss."""

        def loss(lr: float) -> float:
            run = self._run(case, method.grid[lr], TUNING_SEED, f"tuning lr={lr:g}")
            return or_infinite(fmean(point.validation_loss for point in final(case, run)))

        return Done(method, min(method.grid, key=loss, default=None))

    def _run(self, case: Any, method: Method, seed: int, what: str) -> Run:
        self.bar.update(BAR, description=f"{case.title}: {f'{method.name}, {what}':34}")
        path = path_of(self.folder, case, method, seed, self.device) if self.folder else None
        if path and path.exists() and not self.again:
            commit, run = pickle.loads(path.read_bytes())
            self.reused += 1
        else:
            commit = results.commit()  # before: sources may change while it runs
            run = case.run(method, seed, self.device)
            if path:
                with whole(path) as unfinished:
                    unfinished.write_bytes(pickle.dumps((commit, run)))
        self.commits.add(commit)
        self.bar.advance(BAR)
        return run


# --- runs as results ------------------------------------------------------------------------------


def said_of(done: Mapping[Any, list[Done]], runner: Runner) -> dict[str, Any]:
    """What is said of all runs, whatever was run."""
    return {
        "cases": {case.case: case.title for case in done},
        "descriptions": {case.case: case.description for case in done},
        "seeds": max(len(one.runs) for found in done.values() for one in found),
        "final_share": FINAL_SHARE,
        "missing": runner.missing,
    }


def collect(
    bench: str, done: dict[Problem, list[Done]], runner: Runner,
    rows: Callable[[str, Problem, Done], list[Row]] | None = None,
    curves: Callable[[str, Problem, Done], list[Curve]] | None = None,
) -> Results:  # fmt: skip
    """One file of results of what ran so far; what is made of runs is `rows_of` and `curves_of`."""
    every = [(case, one) for case, found in done.items() for one in found]
    settings = {
        **said_of(done, runner),
        "log_loss": [case.case for case in done if case.log_loss],
        "plain_steps": {case.case: case.plain_steps for case in done},
        "samples": "; ".join(f"{case.title}: {case.evaluated_on}" for case in done),
        "optimizers": {one.method.name: one.method.settings for _, one in every},
        "warm_up": WARM_UP,
        "peers": versions(),
    }
    where = {**results.environment(runner.device), "commit": ", ".join(sorted(runner.commits))}
    made = [row for case, one in every for row in (rows or rows_of)(bench, case, one)]
    drawn = [curve for case, one in every for curve in (curves or curves_of)(bench, case, one)]
    return Results(where, made, drawn, settings)


def rows_of(bench: str, problem: Problem, done: Done) -> list[Row]:
    """The figures of one optimizer on one problem, one value for every seed."""
    runs, unit, ends = done.runs, problem.unit, [final(problem, run) for run in done.runs]

    def at_the_end(name: str) -> list[float]:
        return [fmean(getattr(point, name) for point in end) for end in ends]

    metrics: dict[tuple[str, str], Sequence[float]] = {
        ("train_loss", unit): at_the_end("train_loss"),
        ("validation_loss", unit): at_the_end("validation_loss"),
        # after the warm-up, or over all steps of a run that ends within it
        ("extra_forwards", "per step"): [
            fmean(run.extra_forwards[WARM_UP:] or run.extra_forwards) for run in runs
        ],
        ("step_time", "ms"): [median(run.milliseconds) for run in runs],
        ("train_time", "s"): [sum(run.milliseconds) / 1e3 for run in runs],
        ("final_step_size", "1"): [run.step_sizes[-1] for run in runs],
        ("steps", "1"): [len(run.losses) for run in runs],
    }
    if problem.classes:
        metrics["validation_accuracy", "share"] = at_the_end("validation_accuracy")
    if done.lr is not None:
        metrics["tuning_runs", "1"] = [len(done.method.grid)]
        metrics["chosen_lr", "1"] = [done.lr]
    row = partial(results.row, bench, problem.case, done.method.name)
    return [row(metric, of, values) for (metric, of), values in metrics.items()]


def curves_of(bench: str, problem: Problem, done: Done) -> list[Curve]:
    """Losses over work (in plain steps' worth of it), and the step size over steps."""
    curve, runs = partial(results.curve, bench, problem.case, done.method.name), done.runs
    marks = range(problem.checkpoints + 1)
    work = [mark * problem.plain_steps / problem.checkpoints for mark in marks]
    steps = range(1, 1 + max(len(run.step_sizes) for run in runs))
    losses = {
        name: [[getattr(point, name) for point in run.checkpoints] for run in runs]
        for name in ("train_loss", "validation_loss")
    }
    over_work = [curve(name, "plain steps of work", work, of) for name, of in losses.items()]
    return [*over_work, curve("step_size", "steps", steps, [run.step_sizes for run in runs])]


def final(problem: Problem, run: Run) -> list[Checkpoint]:
    """What is measured in the last part of the work, at least the end of it."""
    last_outside = int((1 - FINAL_SHARE) * problem.checkpoints)
    return run.checkpoints[last_outside + 1 :]
