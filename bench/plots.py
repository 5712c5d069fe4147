"""Every figure of the benchmarks, drawn from a results file and from nothing else."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context

from bench.results import Curve, Results

LOOK = Path(__file__).with_name("look.mplstyle")
WORK = "work (1 = one forward and one backward)"


@contextmanager
def figure(
    path: Path, rows: int, columns: int, size: tuple[float, float], title: str = "", **how: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Give a figure of `rows` times `columns` panels to draw in, and save it as PNG afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with context(LOOK):
        drawn = Figure(figsize=size, layout="constrained")
        drawn.suptitle(title, x=0.01, ha="left")
        panels = list(drawn.subplots(rows, columns, squeeze=False, **how).flat)
        yield drawn, panels
        for axes in panels:
            if not axes.has_data():
                axes.set_axis_off()
        drawn.savefig(path)


def draw_curves(axes: Axes, results: Results, case: str, quantity: str, unit: str) -> list[Curve]:
    """Draw the mean of every optimizer, the first one on top; of two also the seeds' extremes."""
    names, curves = list(results.settings["optimizers"]), results.curves_of(case, quantity, unit)
    styles: dict[str, Any] = dict(zip(names, rcParams["axes.prop_cycle"]))
    styles[names[0]] |= {"linewidth": 2.6, "zorder": 3}
    for curve in curves:
        style = styles[curve.optimizer]
        axes.plot(curve.x, curve.mean, label=curve.optimizer, **style)
        if len(names) == 2:
            axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.18)
    return curves


def draw_losses(axes: Axes, results: Results, case: str) -> None:
    curves = draw_curves(axes, results, case, "train_loss", "plain steps of work")
    log = case in results.settings["log_loss"]
    axes.set_yscale("log" if log else "linear")
    # The untrained model's loss, or one that diverged, would squeeze all others.
    starts = [curve.mean[min(1, len(curve.mean) - 1)] for curve in curves]
    if finite := [start for start in starts if math.isfinite(start)]:
        high = min(1.3 * max(curve.mean[0] for curve in curves), 1.05 * max(finite))
        low = min(loss for curve in curves for loss in curve.mean if math.isfinite(loss))
        axes.set_ylim(0.8 * low if log else low - 0.05 * (high - low), high)


def draw_demo(results: Results, path: Path) -> None:
    """For each problem, loss over work and step size over steps."""
    cases, how = results.settings["cases"], results.settings["optimizers"]
    seeds = results.settings["seeds"]
    title = f"{' and '.join(how)}, the same work: mean and range of {seeds} seeds"
    size = (12, 0.6 + 3.6 * len(cases))
    with figure(path, len(cases), 2, size, title, width_ratios=(3, 2)) as (_, panels):
        for case, losses, sizes in zip(cases, panels[::2], panels[1::2]):
            draw_losses(losses, results, case)
            draw_curves(sizes, results, case, "step_size", "steps")
            losses.set(title=f"{cases[case]}: training loss (nats)", xlabel=WORK)
            sizes.set(yscale="log", title=f"{cases[case]}: step size", xlabel="step")
        lines, names = panels[0].get_legend_handles_labels()
        panels[0].legend(lines, [f"{name} ({how[name]})" for name in names], loc="upper right")


def draw_train(results: Results, path: Path) -> None:
    """A panel per problem, and one legend for all."""
    cases, seeds = results.settings["cases"], results.settings["seeds"]
    columns = min(4, len(cases))
    rows = -(-len(cases) // columns)
    title = f"Training loss over {WORK}, the same work for all"
    title += f"; mean of {seeds} seeds" if seeds > 1 else ""
    size = (3.6 * max(columns, 2), 1.6 + 2.7 * rows)
    with figure(path, rows, columns, size, title) as (whole, panels):
        found: dict[str, Any] = {}  # an optimizer may be missing in some panels
        for (case, shown), axes in zip(cases.items(), panels):
            draw_losses(axes, results, case)
            axes.set_title(shown)
            found = {**dict(zip(*axes.get_legend_handles_labels()[::-1])), **found}
        ncols = min(6, columns + 2)
        whole.legend(found.values(), found, loc="outside lower center", ncols=ncols)


# What draws the picture of a benchmark.
Draw = Callable[[Results, Path], None]
PICTURES: dict[str, Draw] = {"demo": draw_demo, "train": draw_train}


def draw(folder: Path, pictures: Mapping[str, Draw] = PICTURES) -> list[Path]:
    """Draw the plots of a folder, by the names of its files; return their paths."""
    drawn = [folder / f"{name}.png" for name in pictures if (folder / f"{name}.json").exists()]
    for path in drawn:
        pictures[path.stem](Results.read(path.with_suffix(".json")), path)
    return drawn
