"""What the papers report, of every run: peak accuracy, how step sizes move, what a search costs."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean, median

from bench import results, runs
from bench.paper.fine_tuning import FineTuning
from bench.results import Curve, Results, Row
from bench.runs import Done, Runner
from bench.training import PLAIN_STEP, Problem, Run

DRAWN = ("tables", "published", "rounding")


def collect(name: str, done: dict[Problem, list[Done]], runner: Runner) -> Results:
    """One file of results of what ran so far."""
    return runs.collect(name, done, runner, rows_of, curves_of)


def rows_of(bench: str, problem: Problem, done: Done) -> list[Row]:
    row, of = partial(results.row, bench, problem.case, done.method.name), done.runs
    scores = [row(name, "1", [run.scores[name] for run in of]) for name in of[0].scores]
    if isinstance(problem, FineTuning):
        return scores
    figures = {
        "half_loss": [_at_half(run) for run in of],
        "step_size": [median(_second_half(run.step_sizes)) for run in of],
        "change": [change_per_step(_second_half(run.step_sizes)) for run in of],
        "fall": [largest_fall(run.step_sizes) for run in of],
        "overhead": [run.work[-1] / (PLAIN_STEP * len(run.losses)) - 1 for run in of],
    }
    if problem.classes:
        peaks = [max(point.validation_accuracy for point in run.checkpoints) for run in of]
        figures["peak_accuracy"] = peaks
    return [
        *runs.rows_of(bench, problem, done),
        *(row(metric, "1", values) for metric, values in figures.items()),
        *scores,
    ]


def curves_of(bench: str, problem: Problem, done: Done) -> list[Curve]:
    """As of every training, and the step size of the first seed alone; where they are drawn."""
    if bench not in DRAWN:
        return []
    sizes = done.runs[0].step_sizes
    one = results.curve(
        bench, problem.case, done.method.name, "step_size_of_one", "steps",
        range(1, 1 + len(sizes)), [sizes], points=400,
    )  # fmt: skip
    return [*runs.curves_of(bench, problem, done), one]


def _second_half(values: Sequence[float]) -> Sequence[float]:
    return values[len(values) // 2 :]


def _at_half(run: Run) -> float:
    return run.checkpoints[len(run.checkpoints) // 2].train_loss


def change_per_step(sizes: Sequence[float]) -> float:
    """The mean of |ln(size / the one before)|: 0.01 is one percent, up or down, in every step."""
    return fmean(abs(math.log(b / a)) for a, b in pairwise(sizes)) if len(sizes) > 1 else 0.0


def largest_fall(sizes: Sequence[float]) -> float:
    """The largest factor of a fall within a tenth of the run, the first tenth left out."""
    window = max(1, len(sizes) // 10)
    later = sizes[window:]
    return max((later[i] / min(later[i : i + window]) for i in range(len(later))), default=1.0)
