"""The demo's figure, drawn from the data of a results file and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.style import context
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.results import Curve, Results

# Two colours of Okabe and Ito's palette, which colour-blind readers can tell apart; the dashes
# are for readers of black and white.
STYLES: dict[str, dict[str, Any]] = {
    "FusedSaLSa": {"color": "#D55E00", "linestyle": "solid", "zorder": 3},
    "Adam": {"color": "#0072B2", "linestyle": (0, (5, 1.5)), "zorder": 2},
}

LOOK: dict[str, Any] = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.01,
    "figure.titlesize": 14,
    "figure.titleweight": "bold",
    "grid.color": "#e4e4e4",
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "salsa_fused",  # the same data gives the same file
}


def draw_demo(results: Results, folder: Path) -> list[Path]:
    """`demo.png` and `demo.svg`: for each problem, loss over work and step size over steps."""
    cases: dict[str, str] = results.settings["cases"]
    with context(LOOK):
        layout = ConstrainedLayoutEngine(h_pad=0.1)
        figure = Figure(figsize=(12, 0.6 + 3.6 * len(cases)), layout=layout)
        figure.suptitle(_title(results), x=0.01, ha="left")
        panels = figure.subplots(len(cases), 2, squeeze=False, width_ratios=(3, 2))
        for (case, title), (losses, sizes) in zip(cases.items(), panels, strict=True):
            _draw_losses(losses, results, case, title)
            _draw_step_sizes(sizes, results, case, title)
        panels[0, 0].legend(loc="upper right")
        return save(figure, folder, "demo")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """As PNG and as SVG; the same figure gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, dpi=100)
    figure.savefig(svg, metadata={"Date": None})
    return [png, svg]


def _title(results: Results) -> str:
    names, seeds = " and ".join(results.settings["optimizers"]), results.settings["seeds"]
    return f"{names}, the same work: mean and range of {seeds} seeds"


def _draw_losses(axes: Axes, results: Results, case: str, title: str) -> None:
    curves = list(results.curves_of(case, "train_loss", "plain steps of work"))
    for curve in curves:
        how = results.settings["optimizers"][curve.optimizer]
        draw_curve(axes, curve, STYLES[curve.optimizer], f"{curve.optimizer} ({how})")
    if case in results.settings["log_loss"]:
        axes.set_yscale("log")
    else:  # the first loss, of the untrained model, would squeeze all others
        axes.set_ylim(top=max(curve.high[min(1, len(curve.high) - 1)] for curve in curves))
    axes.set_title(f"{title}: training loss (nats)")
    axes.set_xlabel("work (1 = one forward and one backward)")


def _draw_step_sizes(axes: Axes, results: Results, case: str, title: str) -> None:
    for curve in results.curves_of(case, "step_size"):
        draw_curve(axes, curve, STYLES[curve.optimizer])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(f"{title}: step size")
    axes.set_xlabel("step")


def draw_curve(
    axes: Axes, curve: Curve, style: dict[str, Any], label: str | None = None, *, band: bool = True
) -> None:
    """The mean as a line, the extremes of the seeds as a band."""
    axes.plot(curve.x, curve.mean, label=label, **style)
    if band:
        shade = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
        axes.fill_between(curve.x, curve.low, curve.high, **shade)
