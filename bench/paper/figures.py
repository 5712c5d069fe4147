"""The paper's Figures 1 to 6, and the ablations, drawn from the results of `bench paper`."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bench.paper.claims import SIX
from bench.paper.evidence import log_ratios
from bench.plots import Draw, figure
from bench.results import Results

SEARCHES = {"Adam+SLS": "#009E73", "Adam+SaLSa": "#E69F00"}  # as in the panels of losses
WIDE = 5  # from here on a range is drawn in logarithms
GRID = (3.8, 3.0)  # of a panel, in inches


def draw_tables(results: Results, path: Path) -> None:
    """Losses of all candidates (Figures 5 and 6), then step sizes of both searches (1 and 2)."""
    cases, names = results.settings["cases"], list(results.settings["optimizers"])
    columns = len(cases) if len(cases) <= 4 else 3
    rows = -(-len(cases) // columns)
    size = (GRID[0] * max(columns, 2), 0.8 + GRID[1] * 2 * rows)
    title = "Training losses; below, step sizes: mean and range of all seeds, thin: one of them"
    with figure(path, 2 * rows, columns, size, title) as (whole, panels):
        for (case, shown), losses, sizes in zip(cases.items(), panels, panels[rows * columns :]):
            for name in names:
                style = {"linewidth": 1.6, "linestyle": "-" if name in SIX else "--"}
                draw(losses, results, case, "train_loss", name, band=False, **style)
            losses.set(title=shown, yscale=scale_of(losses))
            for name, color in SEARCHES.items():
                draw(sizes, results, case, "step_size", name, color=color)
                draw(sizes, results, case, "step_size_of_one", name, color=color, linewidth=0.6)
            sizes.set(title=f"{shown}: step size", yscale=scale_of(sizes), xlabel="step")
        lines, labels = panels[rows * columns].get_legend_handles_labels()
        panels[rows * columns].legend(lines[::2], labels[::2])
        whole.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def draw(
    axes: Axes, results: Results, case: str, quantity: str, name: str, band: bool = True,
    **style: Any,
) -> None:  # fmt: skip
    """The mean of a method's curves, and the range of its seeds."""
    for curve in results.curves:
        if (curve.case, curve.quantity, curve.optimizer) == (case, quantity, name):
            (line,) = axes.plot(curve.x, curve.mean, label=name, **style)
            if band:
                color = line.get_color()
                axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.2)


def scale_of(axes: Axes) -> str:
    """Logarithms where what is drawn spans more than they need to be read by."""
    drawn = [y for line in axes.get_lines() for y in np.ravel(line.get_ydata()) if y > 0]
    return "log" if drawn and max(drawn) > WIDE * min(drawn) else "linear"


def draw_rounding(results: Results, path: Path) -> None:
    """Figure 3: the loss falls to the last digits of fp32; what becomes of the step sizes?"""
    cases = results.settings["cases"]
    with figure(path, 2, len(cases), (6 * len(cases), 6.5), "Rounding and the step size") as drawn:
        for (case, shown), losses, sizes in zip(cases.items(), drawn[1], drawn[1][len(cases) :]):
            for name, color in SEARCHES.items():
                draw(losses, results, case, "train_loss", name, color=color)
                draw(sizes, results, case, "step_size_of_one", name, color=color)
                draw(sizes, results, case, "step_size", name, color=color, linewidth=0)
            losses.set(title=shown, yscale="log", ylabel="training loss")
            sizes.set(yscale="log", xlabel="step", ylabel="step size: one seed, and the range")
            lines, labels = sizes.get_legend_handles_labels()
            sizes.legend(lines[::2], labels[::2])


def draw_schedule(results: Results, path: Path) -> None:
    """Figure 4: the time of a run, with and without the schedule, over Adam's."""
    cases = results.settings["cases"]
    names = [title.replace(", ", ",\n") for title in cases.values()]
    shown = {"Adam+SaLSa, every step": "search in every step", "Adam+SaLSa": "with the schedule"}
    title = "What the search costs, over Adam's time and work"
    with figure(path, 1, 2, (11, 4.4), title) as (whole, panels):
        for axes, metric, said in zip(
            panels, ("train_time", "overhead"), ("time of the run", "work: forwards and backwards")
        ):
            for index, (name, label) in enumerate(shown.items()):
                heights, errors = [], []
                for case in cases:
                    rows = results.rows_of(case, metric)
                    base = rows["Adam"].values if metric == "train_time" else None
                    values = [v / b for v, b in zip(rows[name].values, base)] if base else [
                        1 + v for v in rows[name].values]  # fmt: skip
                    heights.append(fmean(values))
                    errors.append(stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0)
                places = [place + 0.38 * index for place in range(len(cases))]
                axes.bar(places, heights, 0.36, yerr=errors, label=label)
            axes.axhline(1, color="black", linewidth=1)
            axes.set(title=said, ylim=(0.8, None))
            axes.set_xticks([place + 0.19 for place in range(len(names))], names, fontsize=9)
        whole.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _value(name: str, usual: float) -> float:
    """Of a setting, by its name: "c=0.1", "period up to 20"; any other name is the usual one."""
    digits = name.replace("period up to ", "=").partition("=")[2]
    return float(digits) if digits else usual


def _ablation(usual: float, title: str, label: str, axis: Callable[[float], float] = float) -> Any:
    def draw_ablation(results: Results, path: Path) -> None:
        """The final loss over the setting, relative to the usual one, and the extra work."""
        cases = results.settings["cases"]
        with figure(path, 1, 2, (11, 4), title) as (_, (losses, costs)):
            for case, shown in cases.items():
                rows, work = (results.rows_of(case, of) for of in ("train_loss", "overhead"))
                values = {_value(name, usual): name for name in rows}
                base = rows[values[usual]].values
                order = sorted(values)
                places = [axis(value) for value in order]
                logs = [log_ratios(rows[values[v]].values, base) for v in order]
                middle = [math.exp(fmean(one)) for one in logs]
                ends = [_errors(one) for one in logs]
                losses.errorbar(
                    places, middle, list(zip(*ends)), marker="o", capsize=3, label=shown
                )
                costs.plot(places, [100 * work[values[v]].mean for v in order], marker="o")
            losses.set(title=f"final loss, over that of {usual:g}", xlabel=label)
            losses.set_yscale(scale_of(losses))
            costs.set(title="extra work, percent", xlabel=label)
            for axes in (losses, costs):
                axes.set_xticks(places, [f"{value:g}" for value in order])
            losses.legend()

    return draw_ablation


def _errors(logs: Sequence[float]) -> tuple[float, float]:
    """Below and above the mean: one standard error."""
    mean, error = fmean(logs), stdev(logs) / len(logs) ** 0.5 if len(logs) > 1 else 0.0
    middle = math.exp(mean)
    return middle - math.exp(mean - error), math.exp(mean + error) - middle


def draw_batch(results: Results, path: Path) -> None:
    """The step size found over the batch size, beside its square root."""
    families: dict[str, dict[int, str]] = {}
    for case in results.settings["cases"]:
        family, _, size = case.rpartition("-b")
        families.setdefault(family, {})[int(size)] = case
    names = list(results.settings["optimizers"])
    title = "Step size over batch size: each seed a dot"
    with figure(path, 1, len(families), (4.6 * len(families), 4), title) as (_, panels):
        for axes, (family, cases) in zip(panels, families.items()):
            for index, name in enumerate(names):
                rows = {size: results.rows_of(case, "step_size") for size, case in cases.items()}
                found = {size: row[name].values for size, row in rows.items() if name in row}
                if not found:
                    continue
                means = [math.exp(fmean(map(math.log, values))) for values in found.values()]
                axes.plot([*found], means, label=name, color=f"C{index}", linestyle="-")
                for size, values in found.items():
                    axes.plot([size] * len(values), values, "o", color=f"C{index}", markersize=4)
                if not index:
                    root = [means[0] * (size / min(found)) ** 0.5 for size in found]
                    axes.plot([*found], root, color="black", linestyle=":", label="square root")
            axes.set(title=family, xscale="log", yscale="log", xlabel="batch size")
            axes.set_xticks([*cases], [str(size) for size in cases], minor=False)
            axes.minorticks_off()
        panels[0].set_ylabel("step size (median, 2nd half)")
        panels[len(families) - 1].legend()  # the first may lack a method


PICTURES: dict[str, Draw] = {
    "paper_tables": draw_tables,
    "paper_published": draw_tables,
    "paper_rounding": draw_rounding,
    "paper_schedule": draw_schedule,
    "paper_c": _ablation(0.3, "The constant c", "c"),
    "paper_beta3": _ablation(
        0.99, "The smoothing beta3", "beta3", lambda beta3: -math.log10(1.001 - beta3)
    ),
    "paper_period": _ablation(10, "The longest period", "longest period", math.log10),
    "paper_batch": draw_batch,
}  # fmt: skip
