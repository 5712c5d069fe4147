"""The figure of `train`: for each problem the training loss, over work and over seconds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.style import context

from bench.plots import LOOK, draw_curve, save
from bench.results import Results

# Okabe and Ito's colours; a family has one colour, and its members differ in their dashes.
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)))
FAMILIES = {
    "FusedSaLSa": "#D55E00",
    "authors": "#8c564b",
    "AdamW": "#0072B2",
    "Prodigy": "#009E73",
    "D-Adaptation": "#CC79A7",
    "schedule-free": "#000000",
}
OTHER = "#999999"
AXES = {"plain steps of work": "work (1 = one forward and one backward)", "s": "seconds"}


def draw_train(results: Results, folder: Path) -> list[Path]:
    """`train.png` and `train.svg`."""
    cases: dict[str, str] = results.settings["cases"]
    styles = styles_of(list(results.settings["optimizers"]))
    with context(LOOK):
        layout = ConstrainedLayoutEngine(h_pad=0.1)
        figure = Figure(figsize=(12, 1.3 + 3.3 * len(cases)), layout=layout)
        seeds = results.settings["seeds"]
        title = f"Training loss (nats), the same work for all; mean of {seeds} seeds"
        figure.suptitle(title if seeds > 1 else title.partition(";")[0], x=0.01, ha="left")
        panels = figure.subplots(len(cases), 2, squeeze=False)
        for (case, name), row in zip(cases.items(), panels, strict=True):
            for axes, (unit, label) in zip(row, AXES.items(), strict=True):
                _draw_losses(axes, results, case, unit, styles)
                axes.set_title(name)
                axes.set_xlabel(label)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=11)
        return save(figure, folder, "train")


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
        axes.set_ylim(top=min(top, 1.05 * max(finite)))
