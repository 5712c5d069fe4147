"""The figures of `train`: the training loss of every problem, over work and over seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.style import context
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bench.plots import LOOK, draw_curve, save
from bench.results import Results

# Okabe and Ito's colours; a family has one colour, and its members differ in their dashes.
DASHES: tuple[Any, ...] = (
    "solid", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
FAMILIES = {
    "FusedSaLSa": "#D55E00",
    "authors": "#8c564b",
    "AdamW": "#0072B2",
    "Prodigy": "#009E73",
    "D-Adaptation": "#CC79A7",
    "schedule-free": "#000000",
    "GeN": "#56B4E9",
    "MoMo": "#E69F00",
}
OTHER = "#999999"
SMALL = {"font.size": 10, "axes.titlesize": 11, "figure.titlesize": 13, "legend.fontsize": 10}
COLUMNS = 4  # of panels
# What the curves run over, with its label and the name of the file.
AXES = {
    "plain steps of work": ("work (1 = one forward and one backward)", "train"),
    "s": ("seconds", "train_seconds"),
}


def draw_train(results: Results, folder: Path) -> list[Path]:
    """A panel per problem: over work `train.png` and `.svg`, over seconds `train_seconds`."""
    return [path for unit in AXES for path in _draw_over(results, unit, folder)]


def _draw_over(results: Results, unit: str, folder: Path) -> list[Path]:
    cases: dict[str, str] = results.settings["cases"]
    styles = styles_of(list(results.settings["optimizers"]))
    columns = min(COLUMNS, len(cases))
    rows = -(-len(cases) // columns)
    label, name = AXES[unit]
    with context({**LOOK, **SMALL}):
        layout = ConstrainedLayoutEngine(h_pad=0.08)
        figure = Figure(figsize=(3.6 * max(columns, 2), 1.6 + 2.7 * rows), layout=layout)
        seeds = results.settings["seeds"]
        title = f"Training loss over {label}, the same work for all"
        figure.suptitle(
            f"{title}; mean of {seeds} seeds" if seeds > 1 else title, x=0.01, ha="left"
        )
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for (case, shown), axes in zip(cases.items(), panels):
            _draw_losses(axes, results, case, unit, styles)
            axes.set_title(shown)
        for axes in panels[len(cases) :]:
            axes.set_axis_off()
        handles, labels = _legend(panels[: len(cases)])
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, columns + 2))
        return save(figure, folder, name)


def _legend(panels: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """Of all panels: an optimizer may be missing in some."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def styles_of(names: list[str]) -> dict[str, dict[str, Any]]:
    """A colour for every family of optimizers, dashes within it; the first is drawn on top."""
    styles: dict[str, dict[str, Any]] = {}
    members: dict[str, int] = {}
    for position, name in enumerate(names):
        family = next((family for family in FAMILIES if name.startswith(family)), "")
        index = members[family] = members.get(family, -1) + 1
        styles[name] = {
            "color": FAMILIES.get(family, OTHER),
            "linestyle": DASHES[index % len(DASHES)],
            "linewidth": 2.6 if position == 0 else 1.6,
            "zorder": 10 if position == 0 else 3,
        }
    return styles


def _draw_losses(
    axes: Axes, results: Results, case: str, unit: str, styles: dict[str, dict[str, Any]]
) -> None:
    curves = list(results.curves_of(case, "train_loss", unit))
    for curve in curves:
        draw_curve(axes, curve, styles[curve.optimizer], curve.optimizer, band=False)
    if case in results.settings["log_loss"]:
        axes.set_yscale("log")
    # The untrained model's loss, or one that diverged, would squeeze all others.
    starts = [curve.mean[min(1, len(curve.mean) - 1)] for curve in curves]
    top = 1.3 * max(start for curve in curves for start in curve.mean[:1])
    finite = [start for start in starts if math.isfinite(start)]
    if finite:
        high = min(top, 1.05 * max(finite))
        low = min(loss for curve in curves for loss in curve.mean if math.isfinite(loss))
        below = 0.8 * low if axes.get_yscale() == "log" else low - 0.05 * (high - low)
        axes.set_ylim(below, high)
    if axes.get_yscale() == "log":
        _few_ticks(axes)


def _few_ticks(axes: Axes) -> None:
    """A small panel has room for a handful, over many decades as within one."""
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    few = MaxNLocator(4) if decades < 0.5 else LogLocator(subs=(1, 2, 5) if decades < 2 else (1,))
    axes.yaxis.set_major_locator(few)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("e-0", "e-")))
    axes.yaxis.set_minor_locator(NullLocator())
