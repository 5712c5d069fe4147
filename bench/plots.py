"""Every figure of the benchmarks, drawn from a results file and from nothing else."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context

from bench.results import UNIT_SIZE, Curve, Results

LOOK = Path(__file__).with_name("look.mplstyle")
FAMILY_SHOWS = "reviews-minilm"
# What the curves of losses run over, and how an axis calls it.
WORK, SECONDS = "plain steps of work", "s"
LABELS = {WORK: "work (1 = one forward and one backward)", SECONDS: "seconds"}


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


def draw_losses(axes: Axes, results: Results, case: str, unit: str = WORK) -> None:
    curves = draw_curves(axes, results, case, "train_loss", unit)
    log = case in results.settings["log_loss"]
    axes.set_yscale("log" if log else "linear")
    # The untrained model's loss, or one that diverged, would squeeze all others.
    starts = [curve.mean[min(1, len(curve.mean) - 1)] for curve in curves]
    if finite := [start for start in starts if math.isfinite(start)]:
        high = min(1.3 * max(curve.mean[0] for curve in curves), 1.05 * max(finite))
        low = min(loss for curve in curves for loss in curve.mean if math.isfinite(loss))
        axes.set_ylim(0.8 * low if log else low - 0.05 * (high - low), high)


def draw_beside(
    losses: Axes, sizes: Axes, results: Results, case: str, shown: str = "step size"
) -> None:
    """The losses, and the frame of what is shown beside them."""
    title = results.settings["cases"][case]
    draw_losses(losses, results, case)
    losses.set(title=f"{title}: training loss (nats)", xlabel=LABELS[WORK])
    sizes.set(yscale="log", title=f"{title}: {shown}", xlabel="step")


def draw_demo(results: Results, path: Path) -> None:
    """For each problem, loss over work and step size over steps."""
    cases, how = results.settings["cases"], results.settings["optimizers"]
    seeds = results.settings["seeds"]
    title = f"{' and '.join(how)}, the same work: mean and range of {seeds} seeds"
    size = (12, 0.6 + 3.6 * len(cases))
    with figure(path, len(cases), 2, size, title, width_ratios=(3, 2)) as (_, panels):
        for case, losses, sizes in zip(cases, panels[::2], panels[1::2]):
            draw_curves(sizes, results, case, "step_size", "steps")
            draw_beside(losses, sizes, results, case)
        lines, names = panels[0].get_legend_handles_labels()
        panels[0].legend(lines, [f"{name} ({how[name]})" for name in names], loc="upper right")


def draw_family(results: Results, path: Path) -> None:
    """The fine-tuned transformer's loss (or the last problem's), and PLASLS's step sizes there."""
    cases = results.settings["cases"]
    case = FAMILY_SHOWS if FAMILY_SHOWS in cases else list(cases)[-1]
    own = [c for c in results.curves if c.case == case and c.quantity.startswith(UNIT_SIZE)]
    with figure(path, 1, 2, (12, 4.8)) as (_, (losses, sizes)):
        # from the input (dark) to the head (light)
        colors = colormaps["viridis"].resampled(len(own) + 1).colors  # type: ignore[attr-defined]
        for one, color in zip(own, colors):
            label = one.quantity.removeprefix(UNIT_SIZE)
            sizes.plot(one.x, one.mean, label=label, color=color, linestyle="-")
        draw_beside(losses, sizes, results, case, "PLASLS's step sizes")
        losses.legend()
        if own:
            sizes.legend(fontsize=9, ncols=2)


def draw_train(results: Results, path: Path, unit: str = WORK) -> None:
    """A panel per problem, and one legend for all."""
    cases, seeds = results.settings["cases"], results.settings["seeds"]
    columns = min(4, len(cases))
    rows = -(-len(cases) // columns)
    title = f"Training loss over {LABELS[unit]}, the same work for all"
    title += f"; mean of {seeds} seeds" if seeds > 1 else ""
    size = (3.6 * max(columns, 2), 1.6 + 2.7 * rows)
    with figure(path, rows, columns, size, title) as (whole, panels):
        found: dict[str, Any] = {}  # an optimizer may be missing in some panels
        for (case, shown), axes in zip(cases.items(), panels):
            draw_losses(axes, results, case, unit)
            axes.set_title(shown)
            found = {**dict(zip(*axes.get_legend_handles_labels()[::-1])), **found}
        ncols = min(6, columns + 2)
        whole.legend(found.values(), found, loc="outside lower center", ncols=ncols)


def draw_step(results: Results, path: Path) -> None:
    """Times relative to fused AdamW's; kinds of steps ("NAME: kind") are left to the table."""
    cases = results.settings["cases"]
    count = (len(cases) + 1) // 2
    title = "A whole training step, time relative to AdamW (fused)"
    with figure(path, count, 2, (12, 1.0 + 2.9 * count), title) as (_, panels):
        for axes, (case, shown) in zip(panels, cases.items()):
            found = results.rows_of(case, "to_fused")
            names = [name for name in reversed(found) if ":" not in name]
            middle = [found[name].median for name in names]
            low, high = ([abs(getattr(found[name], end) - found[name].median) for name in names]
                         for end in ("low", "high"))  # fmt: skip
            colors = ["#D55E00" if name == "FusedSaLSa" else "#7f9fb8" for name in names]
            bars = axes.barh(names, middle, xerr=[low, high], color=colors, ecolor="#555555")
            axes.bar_label(bars, fmt="%.2f", label_type="center", color="white", weight="bold")
            axes.axvline(1.0, color="#333333", linewidth=1)
            axes.grid(axis="y", visible=False)
            axes.set_title(shown.partition(",")[0])


# The name of every picture: of which results it is, and what draws it.
PICTURES: dict[str, tuple[str, Callable[[Results, Path], None]]] = {
    "demo": ("demo", draw_demo),
    "train": ("train", draw_train),
    "train_seconds": ("train", partial(draw_train, unit=SECONDS)),
    "family": ("family", draw_family),
    "step": ("step", draw_step),
}


def draw(folder: Path) -> list[Path]:
    """Draw the plots of a folder; return their paths."""
    drawn = []
    for name, (bench, make) in PICTURES.items():
        if (file := folder / f"{bench}.json").exists():
            drawn.append(folder / f"{name}.png")
            make(Results.read(file), drawn[-1])
    return drawn
