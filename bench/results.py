"""What a benchmark measured, as data: rows of statistics, curves, and where they were measured.

Every benchmark writes one such file; tables and plots are made from it and from nothing else.
"""

import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import fmean, median, quantiles
from types import SimpleNamespace
from typing import Any

import torch

from salsa_fused import __version__

REPOSITORY = Path(__file__).parent.parent


class Row(SimpleNamespace):
    """One metric of one optimizer on one case, over `n` repetitions (seeds, or timed rounds).

    bench, case, optimizer, metric, unit; median, low, high (the extremes), n, mean; `values` are
    the repetitions in their order, so that optimizers can be compared seed by seed.
    """


class Curve(SimpleNamespace):
    """A quantity over `x`: the mean over the seeds and its extremes.

    bench, case, optimizer, quantity, x_unit; x, mean, low, high.
    """


def row(
    bench: str, case: str, optimizer: str, metric: str, unit: str, values: Sequence[float],
    timed: bool = False,
) -> Row:  # fmt: skip
    """Describe `values` by their statistics.

    With `timed` there are many repetitions on a shared machine: `low` and `high` are the 10 % and
    90 % quantiles, and the repetitions themselves are not kept.
    """
    ends = quantiles(values, n=10, method="inclusive") if timed and len(values) > 1 else values
    show = _five_digits if timed else float
    return Row(
        bench=bench, case=case, optimizer=optimizer, metric=metric, unit=unit,
        median=show(median(values)), low=show(min(ends)), high=show(max(ends)), n=len(values),
        mean=show(fmean(values)), values=[] if timed else [*values],
    )  # fmt: skip


def timed_rows(
    bench: str, case: str, optimizer: str, metrics: Mapping[tuple[str, str], Sequence[float]]
) -> list[Row]:
    """A row for each metric and its unit; what has no values is left out."""
    return [
        row(bench, case, optimizer, metric, unit, values, timed=True)
        for (metric, unit), values in metrics.items()
        if values
    ]


def curve(
    bench: str, case: str, optimizer: str, quantity: str, x_unit: str,
    x: Sequence[float], series: Sequence[Sequence[float]], points: int = 200,
) -> Curve:  # fmt: skip
    """Mean and extremes of several series at each `x`, thinned out to at most `points`.

    Series may differ in length (searches cost some runs a few steps): the shortest one counts.
    """
    length = min(len(x), *map(len, series))
    kept = range(0, length, -(-length // points))
    figures = {
        name: [_five_digits(figure([values[i] for values in series])) for i in kept]
        for name, figure in (("mean", fmean), ("low", min), ("high", max))
    }
    return Curve(
        bench=bench, case=case, optimizer=optimizer, quantity=quantity, x_unit=x_unit,
        x=[x[i] for i in kept], **figures,
    )  # fmt: skip


def _five_digits(number: float) -> float:
    """More than a plot shows, and the file stays small."""
    return float(f"{number:.5g}")


@dataclass(frozen=True)
class Results:
    environment: dict[str, Any]
    rows: list[Row]
    curves: list[Curve] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # titles, budgets: what captions need

    def rows_of(self, case: str, metric: str) -> dict[str, Row]:
        """The rows of all optimizers, by their names."""
        return {r.optimizer: r for r in self.rows if (r.case, r.metric) == (case, metric)}

    def curves_of(self, case: str, quantity: str, x_unit: str) -> list[Curve]:
        wanted = (case, quantity, x_unit)
        return [one for one in self.curves if (one.case, one.quantity, one.x_unit) == wanted]

    def write(self, path: Path) -> None:
        """Write JSON with one row or curve a line, so that a diff of two results can be read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema": 1, **vars(self)}, default=vars)
        content = json.loads(text, parse_constant=lambda _: None)
        parts = []
        for key, value in content.items():
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
            if isinstance(value, list) and value:
                text = "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
            parts.append(f"  {json.dumps(key)}: {text}")
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Results":
        content = json.loads(path.read_text(encoding="utf-8"))
        del content["schema"]
        content["rows"] = [Row(**_with_nan(one)) for one in content["rows"]]
        content["curves"] = [Curve(**_with_nan(one)) for one in content["curves"]]
        return cls(**content)


def _with_nan(content: dict[str, Any]) -> dict[str, Any]:
    """JSON has no number for what diverged: null stands for it, also in lists."""
    lists = {key: [math.nan if x is None else x for x in value]
             for key, value in content.items() if isinstance(value, list)}  # fmt: skip
    return {key: math.nan if value is None else value for key, value in content.items()} | lists


def environment(device: torch.device) -> dict[str, Any]:
    """Everything that a reader needs to judge the figures, or to get them again."""
    return {
        "device": device_name(device),
        "kind": "gpu" if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "salsa_fused": __version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")  # on Linux
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version(distribution: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of the checkout, "-dirty" where tracked files differ; "unknown" outside of git."""
    git = partial(subprocess.check_output, text=True, stderr=subprocess.DEVNULL, cwd=REPOSITORY)
    # results and the pages that show them do not count: they change because of a run
    code = ("--untracked-files=no", "--", ".", ":!bench/results", ":!README.md", ":!docs")
    try:
        head = git(["git", "rev-parse", "--short=12", "HEAD"]).strip()
        return f"{head}-dirty" if git(["git", "status", "--porcelain", *code]) else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
