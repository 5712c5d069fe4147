"""Training runs as rows and curves: one value per seed, and the mean and extremes of them."""

from __future__ import annotations

from statistics import fmean, median

from bench import results
from bench.results import Curve, Row
from bench.training import Checkpoint, Problem, Run

FINAL_SHARE = 0.2  # of the work: final figures are means over what is measured in this last part
UNIT_SIZE = "step_size of "  # and the unit's name: a quantity of curves
WARM_UP = 20  # steps: the first search looks for the order of magnitude, and that costs more


def rows_of(bench: str, problem: Problem, runs: list[Run]) -> list[Row]:
    """The figures of one optimizer on one problem; `runs` are its seeds."""
    ends = [final(problem, run) for run in runs]
    unit = problem.loss.unit
    metrics = {
        ("train_loss", unit): [fmean(p.train_loss for p in end) for end in ends],
        ("validation_loss", unit): [fmean(p.validation_loss for p in end) for end in ends],
        ("batch_loss", unit): [fmean(_last(run.losses)) for run in runs],
        ("extra_forwards", "per step"): [extra_forwards(run) for run in runs],
        ("step_time", "ms"): [median(run.milliseconds) for run in runs],
        ("train_time", "s"): [sum(run.milliseconds) / 1e3 for run in runs],
        ("final_step_size", "1"): [run.step_sizes[-1] for run in runs],
        ("steps", "1"): [float(len(run.losses)) for run in runs],
        ("skipped_steps", "1"): [float(run.skipped_steps) for run in runs],
    }
    if problem.loss.classes:
        metrics["validation_accuracy", "share"] = [
            fmean(p.validation_accuracy for p in end) for end in ends
        ]
    if runs[0].searched_units:  # PLASLS: the searches of all units together, and of one each
        metrics["searches_of_all", "1"] = [run.searched_units.count(-1) for run in runs]
        metrics["searches_of_one", "1"] = [
            len(run.searched_units) - run.searched_units.count(-1) for run in runs
        ]
    return [
        results.row(bench, problem.case, runs[0].method, metric, unit, values)
        for (metric, unit), values in metrics.items()
    ]


def curves_of(bench: str, problem: Problem, runs: list[Run]) -> list[Curve]:
    """Losses over work (in plain steps' worth of it) and over seconds, the step size over steps.

    Seconds are the seeds' mean: those of steps, without evaluations.
    """
    case, name = problem.case, runs[0].method
    marks = range(problem.checkpoints + 1)
    work = [mark * problem.plain_steps / problem.checkpoints for mark in marks]
    steps = range(1, 1 + max(len(run.step_sizes) for run in runs))
    train_losses = [[point.train_loss for point in run.checkpoints] for run in runs]
    validation_losses = [[point.validation_loss for point in run.checkpoints] for run in runs]
    step_sizes = [run.step_sizes for run in runs]
    units = [
        results.curve(bench, case, name, f"{UNIT_SIZE}{unit}", "steps", steps,
                      [run.unit_sizes[unit] for run in runs])
        for unit in runs[0].unit_sizes
    ]  # fmt: skip
    seconds = [fmean(points) for points in zip(*_seconds(runs))]
    work_unit = "plain steps of work"
    return [
        results.curve(bench, case, name, "train_loss", work_unit, work, train_losses),
        results.curve(bench, case, name, "validation_loss", work_unit, work, validation_losses),
        results.curve(bench, case, name, "train_loss", "s", seconds, train_losses),
        results.curve(bench, case, name, "validation_loss", "s", seconds, validation_losses),
        results.curve(bench, case, name, "step_size", "steps", steps, step_sizes),
        *units,
    ]


def _seconds(runs: list[Run]) -> list[list[float]]:
    return [[point.seconds for point in run.checkpoints] for run in runs]


def extra_forwards(run: Run) -> float:
    """Per step, after the warm-up (or over all steps of a run that ends within it)."""
    return fmean(run.extra_forwards[WARM_UP:] or run.extra_forwards)


def final(problem: Problem, run: Run) -> list[Checkpoint]:
    """What is measured in the last part of the work, at least the end of it."""
    last_outside = int((1 - FINAL_SHARE) * problem.checkpoints)
    return run.checkpoints[last_outside + 1 :]


def _last(losses: list[float]) -> list[float]:
    return losses[-max(1, round(FINAL_SHARE * len(losses))) :]
