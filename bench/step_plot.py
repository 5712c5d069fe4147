"""The figure of `step`: for each model, the time of a training step relative to fused AdamW's."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.style import context

from bench.plots import LOOK, save
from bench.results import Results

OURS, OTHER = "#D55E00", "#7f9fb8"


def draw_step(results: Results, folder: Path) -> list[Path]:
    """`step.png` and `step.svg`; kinds of steps ("NAME: kind") are left to the table."""
    cases: dict[str, str] = results.settings["cases"]
    with context(LOOK):
        figure = Figure(figsize=(12, 1.0 + 2.9 * ((len(cases) + 1) // 2)),
                        layout=ConstrainedLayoutEngine(h_pad=0.1))  # fmt: skip
        figure.suptitle("A whole training step, time relative to AdamW (fused)", x=0.01, ha="left")
        panels = figure.subplots((len(cases) + 1) // 2, 2, squeeze=False).flatten()
        for axes, (case, title) in zip(panels, cases.items()):
            rows = [row for row in results.rows if (row.case, row.metric) == (case, "to_fused")]
            rows = [row for row in rows if ":" not in row.optimizer][::-1]
            names = [row.optimizer for row in rows]
            middle = [row.median for row in rows]
            spread = [[m - row.low for m, row in zip(middle, rows)],
                      [row.high - m for m, row in zip(middle, rows)]]  # fmt: skip
            colors = [OURS if name.startswith("FusedSaLSa") else OTHER for name in names]
            axes.barh(names, middle, color=colors, xerr=spread, ecolor="#555555", capsize=2)
            for index, value in enumerate(middle):
                axes.annotate(f"{value:.2f}", (0, index), (4, 0), textcoords="offset points",
                              va="center", color="white", fontsize=10, weight="bold")  # fmt: skip
            axes.axvline(1.0, color="#333333", linewidth=1)
            axes.grid(axis="y", visible=False)
            axes.set_title(title.partition(",")[0])
        for axes in panels[len(cases) :]:
            axes.set_axis_off()
        return save(figure, folder, "step")
