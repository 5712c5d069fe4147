"""Results of a benchmark that nobody ran, for what is made of results."""

from __future__ import annotations

from bench import results
from bench.results import Results


def made(metric: str, values: dict[str, dict[str, list[float]]], **more) -> Results:
    """Results of cases, each with its optimizers and their values by seed."""
    rows = [
        results.row("paper", case, name, metric, "1", of)
        for case, found in values.items()
        for name, of in found.items()
    ]
    names = dict.fromkeys(name for found in values.values() for name in found)
    settings = {"cases": {case: case.upper() for case in values}, "seeds": 2, **more}
    return Results({}, rows, [], {**settings, "optimizers": dict.fromkeys(names, "some")})
