"""Training runs by the dozen: in turn, with progress, each kept so that a stop loses nothing.

`collect` makes one file of results of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from rich.console import Console
from rich.progress import TaskID

from bench import results
from bench.console import progress_bars
from bench.methods import Method
from bench.peers import MissingPeer, versions
from bench.ranks import or_infinite
from bench.results import REPOSITORY, UNIT_SIZE, Curve, Results, Row
from bench.training import FINAL_SHARE, Checkpoint, Problem, Run, train

TUNING_SEED = 1000  # none of the seeds that count
# Sources that decide what a run does.
SOURCES = ("methods", "training", "problems", "hub", "models", "networks", "sets/*")
WARM_UP = 20  # steps: the first search looks for the order of magnitude, and that costs more

MakeMethod = Callable[..., Any]  # a `Method`, or a script's `Way`
BAR = TaskID(0)  # the only one


@cache
def code(ours: bool) -> str:
    """A digest of the sources that decide what a run does; FusedSaLSa's only where it is run."""
    patterns = [f"bench/{name}.py" for name in SOURCES]
    patterns += ["salsa_fused/**/*.py", "csrc/*", "bench/optimizers.py"] if ours else []
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in REPOSITORY.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def key_of(case: Problem, method: Method, seed: int, device: torch.device) -> dict[str, object]:
    """What a run depends on: it is measured again where settings, sources or machine differ."""
    where = results.environment(device)
    return {
        "case": case.case, "description": case.description,
        "steps": case.plain_steps, "checkpoints": case.checkpoints,
        "method": method.name, "settings": method.settings, "seed": seed,
        **{name: where[name] for name in ("device", "threads", "torch", "python")},
        "code": code(method.ours), "peers": versions(),
    }  # fmt: skip


def kept(
    folder: Path | None, key: dict[str, object], make: Callable[[], dict[str, Any]], again: bool
) -> tuple[dict[str, Any], bool]:
    """What `make` returns for this key, and whether that was in the folder already."""
    if folder is None:
        return make(), False
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    name = re.sub(r"\W+", "-", f"{key['case']} {key['method']} {key['seed']}")
    path = folder / f"{name}-{digest}.json"
    if path.exists() and not again:
        return json.loads(path.read_text(encoding="utf-8")), True
    content = make()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")  # all or nothing
    unfinished.write_text(json.dumps({"key": key, **content}), encoding="utf-8")
    unfinished.replace(path)
    return content, False


@dataclass
class Done:
    """One method on one case: a run for every seed, and what it cost to tune it."""

    method: Any
    runs: list[Run] = field(default_factory=list)
    tuning: dict[float, float] = field(default_factory=dict)  # learning rate: validation loss


@dataclass
class Runner:
    """Runs every method on every case; what cannot run is said, and left out."""

    device: torch.device
    console: Console
    folder: Path | None = None  # where runs are kept
    again: bool = False  # measure what is there already, too
    missing: dict[str, str] = field(default_factory=dict)
    reused: int = 0
    commits: set[str] = field(default_factory=set)  # that the runs are of

    def run_all(self, case: Any, make_methods: Sequence[MakeMethod], seeds: int) -> list[Done]:
        """The methods take turns, also in going first: a busy machine slows all of them down."""
        found = []
        runs = sum(seeds + len(make().grid) for make in make_methods)
        with progress_bars(self.console) as self.bar:
            self.bar.add_task(case.title, total=runs * case.budget)
            for make in make_methods:
                with self._reported(case, make()):
                    found.append(self._tuned(case, make))
            for seed in range(seeds):
                for done in found if seed % 2 == 0 else reversed(found):
                    if len(done.runs) == seed:  # else a seed before has failed
                        with self._reported(case, done.method):
                            what = f"seed {seed + 1} of {seeds}"
                            done.runs.append(self._run(case, done.method, seed, what))
            self.bar.update(BAR, completed=runs * case.budget, description=case.title)
        return [done for done in found if len(done.runs) == seeds]

    def _tuned(self, case: Problem, make: MakeMethod) -> Done:
        """The method itself, or the best of its grid by validation loss."""
        done = Done(make())
        for lr in done.method.grid:
            run = self._run(case, make(lr=lr), TUNING_SEED, f"tuning lr={lr:g}")
            done.tuning[lr] = fmean(point.validation_loss for point in final(case, run))
        if done.tuning:
            best = min(done.tuning, key=lambda lr: or_infinite(done.tuning[lr]))
            done.method = make(lr=best)
        return done

    def _run(self, case: Any, method: Any, seed: int, what: str) -> Run:
        start = self.bar.tasks[BAR].completed
        self.bar.update(BAR, description=f"{case.title}: {f'{method.name}, {what}':34}")

        def on_work(units: int) -> None:
            self.bar.update(BAR, completed=start + units)

        def measure() -> dict[str, Any]:
            commit = results.commit()  # before: sources may change while it runs
            run = self.train(case, method, seed, on_work)
            return {"commit": commit, "run": asdict(run)}

        key = key_of(case, method, seed, self.device) if self.folder else {}
        content, reused = kept(self.folder, key, measure, self.again)
        self.reused += reused
        self.commits.add(content["commit"])
        on_work(case.budget)
        points = [Checkpoint(**point) for point in content["run"].pop("checkpoints")]
        return Run(**content["run"], checkpoints=points)

    def train(self, case: Any, method: Any, seed: int, on_work: Callable[[int], None]) -> Run:
        return train(case, method, seed, self.device, on_work)

    @contextmanager
    def _reported(self, case: Any, method: Any) -> Iterator[None]:
        """Say what a peer, or this machine, cannot do: the others still count."""
        try:
            yield
        except Exception as error:
            kind = "" if isinstance(error, MissingPeer) else f"{type(error).__name__}: "
            self.leave_out(f"{case.title}: {method.name}", f"{kind}{error}")

    def leave_out(self, name: str, why: str) -> None:
        self.missing[name] = why
        self.console.print(f"{name}: left out: {why}", style="yellow")


# --- runs as results ------------------------------------------------------------------------------

# What is measured in every run, or in those of some methods and problems, and its unit.
UNITS = {
    "train_loss": "", "validation_loss": "",  # the problem's
    "validation_accuracy": "share", "extra_forwards": "per step", "step_time": "ms",
    "train_time": "s", "final_step_size": "1", "steps": "1", "tuning_runs": "1", "chosen_lr": "1",
}  # fmt: skip


def collect(
    bench: str, cases: list[Problem], done: dict[str, list[Done]], device: torch.device
) -> Results:
    """One file of results; `done` has the methods of every case."""
    every = [(case, one) for case in cases for one in done[case.case]]
    settings = {
        "cases": {case.case: case.title for case in cases},
        "descriptions": {case.case: case.description for case in cases},
        "log_loss": [case.case for case in cases if case.log_loss],
        "plain_steps": {case.case: case.plain_steps for case in cases},
        "samples": "; ".join(f"{case.title}: {case.evaluated_on}" for case in cases),
        # a learning rate that was chosen is another one in every case
        "optimizers": {one.method.name: one.method.settings.replace(
            f"lr={one.method.chosen_lr:g}", f"the best lr of {len(one.tuning)}"
        ) for _, one in every},
        "seeds": max(len(one.runs) for _, one in every),
        "final_share": FINAL_SHARE,
        "warm_up": WARM_UP,
    }  # fmt: skip
    rows = [row for case, one in every for row in rows_of(bench, case, one)]
    curves = [curve for case, one in every for curve in curves_of(bench, case, one.runs)]
    return Results(results.environment(device), rows, curves, settings)


def rows_of(bench: str, problem: Problem, done: Done) -> list[Row]:
    """The figures of one optimizer on one problem, one value for every seed."""
    by_run = [_figures(problem, run) for run in done.runs]
    metrics = {metric: [figures[metric] for figures in by_run] for metric in by_run[0]}
    if done.tuning:  # what was chosen, and how many runs that took
        metrics |= {"tuning_runs": [len(done.tuning)], "chosen_lr": [done.method.chosen_lr]}
    row = partial(results.row, bench, problem.case, done.runs[0].method)
    return [row(of, UNITS[of] or problem.loss.unit, values) for of, values in metrics.items()]


def _figures(problem: Problem, run: Run) -> dict[str, float]:
    end = final(problem, run)
    figures = {
        "train_loss": fmean(point.train_loss for point in end),
        "validation_loss": fmean(point.validation_loss for point in end),
        # after the warm-up, or over all steps of a run that ends within it
        "extra_forwards": fmean(run.extra_forwards[WARM_UP:] or run.extra_forwards),
        "step_time": median(run.milliseconds),
        "train_time": sum(run.milliseconds) / 1e3,
        "final_step_size": run.step_sizes[-1],
        "steps": float(len(run.losses)),
    }
    if problem.loss.classes:
        figures["validation_accuracy"] = fmean(point.validation_accuracy for point in end)
    return figures


def curves_of(bench: str, problem: Problem, runs: list[Run]) -> list[Curve]:
    """Losses over work (in plain steps' worth of it) and over seconds, the step size over steps.

    Seconds are the seeds' mean: those of steps, without evaluations.
    """
    curve = partial(results.curve, bench, problem.case, runs[0].method)
    marks = range(problem.checkpoints + 1)
    work = [mark * problem.plain_steps / problem.checkpoints for mark in marks]
    seconds = [fmean(p.seconds for p in points) for points in zip(*(r.checkpoints for r in runs))]
    steps = range(1, 1 + max(len(run.step_sizes) for run in runs))
    losses = {
        name: [[getattr(point, name) for point in run.checkpoints] for run in runs]
        for name in ("train_loss", "validation_loss")
    }
    sizes = {"step_size": [run.step_sizes for run in runs]}
    for unit in runs[0].unit_sizes:
        sizes[f"{UNIT_SIZE}{unit}"] = [run.unit_sizes[unit] for run in runs]
    return [
        *(curve(name, "plain steps of work", work, series) for name, series in losses.items()),
        *(curve(name, "s", seconds, series) for name, series in losses.items()),
        *(curve(name, "steps", steps, series) for name, series in sizes.items()),
    ]


def final(problem: Problem, run: Run) -> list[Checkpoint]:
    """What is measured in the last part of the work, at least the end of it."""
    last_outside = int((1 - FINAL_SHARE) * problem.checkpoints)
    return run.checkpoints[last_outside + 1 :]
