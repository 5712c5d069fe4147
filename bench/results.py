"""What a benchmark measured, as data: rows of statistics, curves, and where they were measured.

Every benchmark writes one such file; tables and plots are made from it and from nothing else.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from salsa_fused import __version__

SCHEMA = 1
REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True)
class Row:
    """One metric of one optimizer on one case, over `n` repetitions (seeds, or timed rounds).

    `low` and `high` are the extremes; `values` are the repetitions themselves, in their order,
    so that optimizers can be compared seed by seed.
    """

    bench: str
    case: str
    optimizer: str
    metric: str
    unit: str
    median: float
    low: float
    high: float
    n: int
    mean: float
    values: tuple[float, ...]


def row(
    bench: str, case: str, optimizer: str, metric: str, unit: str, values: Sequence[float]
) -> Row:
    """The statistics of `values`; an error where there is nothing to describe."""
    _check_any(values, f"{bench}, {case}, {optimizer}: no values of {metric}")
    return Row(
        bench=bench,
        case=case,
        optimizer=optimizer,
        metric=metric,
        unit=unit,
        median=statistics.median(values),
        low=min(values),
        high=max(values),
        n=len(values),
        mean=statistics.fmean(values),
        values=tuple(values),
    )


def timed_row(
    bench: str, case: str, optimizer: str, metric: str, unit: str, values: Sequence[float]
) -> Row:
    """As `row`, for many repetitions on a shared machine: `low` and `high` are the 10 % and 90 %
    quantiles, and the repetitions themselves are not kept.
    """
    _check_any(values, f"{bench}, {case}, {optimizer}: no values of {metric}")
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values
    middle, low, high = (_short(x) for x in (statistics.median(values), tenths[0], tenths[-1]))
    mean = _short(statistics.fmean(values))
    return Row(bench, case, optimizer, metric, unit, middle, low, high, len(values), mean, ())


def _check_any(values: Sequence[float], message: str) -> None:
    if not values:
        raise ValueError(message)


@dataclass(frozen=True)
class Curve:
    """A quantity over `x`: the mean over the seeds and its extremes."""

    bench: str
    case: str
    optimizer: str
    quantity: str
    x_unit: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curve(
    bench: str,
    case: str,
    optimizer: str,
    quantity: str,
    x_unit: str,
    x: Sequence[float],
    series: Sequence[Sequence[float]],
    points: int = 200,
) -> Curve:
    """Mean and extremes of several series at each `x`, thinned out to at most `points`.

    Series may differ in length (searches cost some runs a few steps): the shortest one counts.
    """
    length = min(len(x), *(len(values) for values in series))
    kept = range(0, length, -(-length // points))
    columns = [[values[i] for values in series] for i in kept]
    return Curve(
        bench=bench,
        case=case,
        optimizer=optimizer,
        quantity=quantity,
        x_unit=x_unit,
        x=tuple(x[i] for i in kept),
        mean=tuple(_short(statistics.fmean(column)) for column in columns),
        low=tuple(_short(min(column)) for column in columns),
        high=tuple(_short(max(column)) for column in columns),
    )


@dataclass(frozen=True)
class Results:
    environment: dict[str, Any]
    rows: list[Row]
    curves: list[Curve] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # titles, budgets: what captions need

    def row(self, case: str, optimizer: str, metric: str) -> Row:
        for row in self.rows:
            if (row.case, row.optimizer, row.metric) == (case, optimizer, metric):
                return row
        raise KeyError(f"no row for case {case!r}, optimizer {optimizer!r}, metric {metric!r}")

    def curves_of(self, case: str, quantity: str, x_unit: str | None = None) -> Iterator[Curve]:
        """All optimizers' curves of a quantity, over `x_unit` where there are several."""
        for curve in self.curves:
            same = (curve.case, curve.quantity) == (case, quantity)
            if same and x_unit in (None, curve.x_unit):
                yield curve

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _without_nan({"schema": SCHEMA, **asdict(self)})
        path.write_text(_lines(content) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema {content.get('schema')!r}, expected {SCHEMA}")
        return cls(
            environment=content["environment"],
            rows=[_row_from(row) for row in content["rows"]],
            curves=[_curve_from(curve) for curve in content["curves"]],
            settings=content["settings"],
        )


def _row_from(content: dict[str, Any]) -> Row:
    numbers = {key: _number(content[key]) for key in ("median", "low", "high", "mean")}
    return Row(**{**content, **numbers, "values": tuple(map(_number, content["values"]))})


def _curve_from(content: dict[str, Any]) -> Curve:
    lists = {key: tuple(map(_number, content[key])) for key in ("x", "mean", "low", "high")}
    return Curve(**{**content, **lists})


def _without_nan(content: Any) -> Any:
    """JSON has no number for what diverged: null stands for it."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return content


def _number(content: float | None) -> float:
    return math.nan if content is None else content


def environment(device: torch.device) -> dict[str, Any]:
    """Everything that a reader needs to judge the figures, or to get them again."""
    return {
        "device": device_name(device),
        "kind": "gpu" if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "salsa_fused": __version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    for line in information.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of the checkout, "-dirty" where tracked files differ; "unknown" outside of git.

    Results and the README, which shows them, do not count: they change because of a run.
    """
    head = _git("rev-parse", "--short=12", "HEAD")
    code = (".", ":!bench/results", ":!README.md")
    if head and _git("status", "--porcelain", "--untracked-files=no", "--", *code):
        return f"{head}-dirty"
    return head or "unknown"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _short(number: float) -> float:
    """Five digits: more than a plot shows, and the file stays small."""
    return float(f"{number:.5g}")


def _lines(content: dict[str, Any]) -> str:
    """JSON with one row or curve per line, so that a diff of two results can be read."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            items = ",\n    ".join(json.dumps(item) for item in value)
            text = f"[\n    {items}\n  ]" if value else "[]"
        else:
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"
