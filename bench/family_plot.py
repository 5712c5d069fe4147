"""The figure of `train --family`: the loss on one problem, and PLASLS's step sizes there."""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.style import context

from bench.plots import LOOK, draw_curve, save
from bench.results import Results
from bench.summary import UNIT_SIZE

SHOWN = "reviews-minilm"
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8c564b")


def draw_family(results: Results, folder: Path) -> list[Path]:
    """`family.png` and `family.svg`: of the fine-tuned transformer, or of the last problem."""
    cases: dict[str, str] = results.settings["cases"]
    case = SHOWN if SHOWN in cases else list(cases)[-1]
    title = cases[case]
    with context(LOOK):
        layout = ConstrainedLayoutEngine(h_pad=0.1)
        figure = Figure(figsize=(12, 4.8), layout=layout)
        losses, sizes = figure.subplots(1, 2)
        _draw_losses(losses, results, case)
        losses.set_title(f"{title}: training loss (nats)")
        losses.set_xlabel("work (1 = one forward and one backward)")
        _draw_units(sizes, results, case)
        sizes.set_title(f"{title}: PLASLS's step sizes")
        sizes.set_xlabel("step")
        return save(figure, folder, "family")


def _draw_losses(axes: Axes, results: Results, case: str) -> None:
    for index, curve in enumerate(results.curves_of(case, "train_loss", "plain steps of work")):
        style = {"color": COLORS[index % len(COLORS)], "linewidth": 2.6 if index == 0 else 1.6}
        draw_curve(axes, curve, style, curve.optimizer, band=False)
    if case in results.settings["log_loss"]:
        axes.set_yscale("log")
    axes.legend(fontsize=10)


def _draw_units(axes: Axes, results: Results, case: str) -> None:
    """From the input (dark) to the head (light)."""
    own = [c for c in results.curves if c.case == case and c.quantity.startswith(UNIT_SIZE)]
    for index, curve in enumerate(own):
        style = {
            "color": colormaps["viridis"](0.9 * index / max(1, len(own) - 1)),
            "linewidth": 1.6,
        }
        draw_curve(axes, curve, style, curve.quantity.removeprefix(UNIT_SIZE), band=False)
    axes.set_yscale("log")
    if own:
        axes.legend(fontsize=9, ncols=2)
