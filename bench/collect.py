"""Training runs as one file of results: rows, curves, and what captions have to say of them."""

from __future__ import annotations

import torch

from bench import results, summary
from bench.results import Curve, Results, Row
from bench.runs import Done
from bench.training import Problem


def collect(
    bench: str, cases: list[Problem], done: dict[str, list[Done]], device: torch.device
) -> Results:
    """`done` has the methods of every case."""
    rows: list[Row] = []
    curves: list[Curve] = []
    for case in cases:
        for one in done[case.case]:
            rows += summary.rows_of(bench, case, one.runs)
            rows += _tuning(bench, case, one)
            curves += summary.curves_of(bench, case, one.runs)
    methods = {one.method.name: _settings(one) for found in done.values() for one in found}
    settings = {
        "cases": {case.case: case.title for case in cases},
        "descriptions": {case.case: case.description for case in cases},
        "log_loss": [case.case for case in cases if case.log_loss],
        "plain_steps": {case.case: case.plain_steps for case in cases},
        "samples": "; ".join(f"{case.title}: {case.evaluated_on}" for case in cases),
        "optimizers": methods,
        "seeds": max(len(one.runs) for found in done.values() for one in found),
        "final_share": summary.FINAL_SHARE,
        "warm_up": summary.WARM_UP,
    }
    return Results(results.environment(device), rows, curves, settings)


def _settings(done: Done) -> str:
    """In words; a learning rate that was chosen is another one in every case."""
    chosen = f"lr={done.method.chosen_lr:g}"
    return done.method.settings.replace(chosen, f"the best lr of {len(done.tuning)}")


def _tuning(bench: str, case: Problem, done: Done) -> list[Row]:
    """What was chosen from, and how many runs the choice took."""
    if not done.tuning:
        return []
    name, values = done.method.name, list(done.tuning.values())
    return [
        results.row(bench, case.case, name, "tuning_runs", "1", [float(len(values))]),
        results.row(bench, case.case, name, "chosen_lr", "1", [done.method.chosen_lr]),
    ]
