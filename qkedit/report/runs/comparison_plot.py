"""Plot the differences between two runs as a forest plot: one line per metric with its interval, and zero.

matplotlib is an extra (`pip install 'qkedit[plot]'`), imported only when a plot is requested.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from qkedit.evaluation.metric import Better, Unit
from qkedit.evaluation.statistics.comparison import ComparedMetric, ComparedSplit, RunComparison
from qkedit.report.plots import encoded, entitle, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable for readers who cannot tell red from green.
COLOURS = {"better": "#0072b2", "worse": "#d55e00", "": "#808080"}
ARROWS = {Better.HIGHER: " ↑", Better.LOWER: " ↓", Better.NEITHER: ""}
_ROW = 0.27  # inches


def run_comparison_plot(comparison: RunComparison, file_format: str) -> bytes:
    """Return the plot as `png`, `svg` or `pdf`; the same comparison gives the same bytes.

    Shares are drawn in percentage points; words and points of a benchmark have a separate axis.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    panels = [
        (title, rows)
        for title, units in (
            ("percentage points", (Unit.SHARE, Unit.PERCENT)),
            ("words or points", (Unit.NUMBER, Unit.HUNDREDTHS)),
        )
        if (rows := _rows(comparison, units))
    ]
    heights = [len(rows) + 1.5 for _, rows in panels]
    with matplotlib.rc_context({"svg.hashsalt": "qkedit", "font.size": 9, "axes.titlesize": 9}):
        figure = Figure(figsize=(8, 1.3 + _ROW * sum(heights)), layout="constrained")
        areas = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        title = f"B − A with {comparison.level:.0%} intervals\nA: {comparison.a}\nB: {comparison.b}"
        entitle(figure, title, 9)
        for axes, (unit, rows) in zip(areas, panels, strict=True):
            _forest(axes, rows, unit)
        _key(areas[0])
        return encoded(figure, file_format)


_Rows = list[tuple[ComparedSplit, ComparedMetric]]


def _rows(comparison: RunComparison, units: Collection[Unit]) -> _Rows:
    """Return the metrics in one of these units that have a difference."""
    return [
        (split, compared)
        for split in comparison.splits
        for compared in split.metrics
        if compared.difference.value is not None and compared.metric.unit in units
    ]


def _forest(axes: Axes, rows: _Rows, unit: str) -> None:
    axes.axvline(0, color="#404040", linewidth=0.8)
    for place, (_, compared) in enumerate(rows):
        found, colour = compared.difference, COLOURS[compared.verdict]
        scale = 100 if compared.metric.unit in (Unit.SHARE, Unit.HUNDREDTHS) else 1
        assert found.value is not None
        if found.low is not None and found.high is not None:
            axes.plot([scale * found.low, scale * found.high], [place, place], color=colour, linewidth=1.6)
        axes.plot(scale * found.value, place, "o", color=colour, markersize=5)
    labels = [f"{split.name}  {compared.difference.metric}{ARROWS[compared.better]}" for split, compared in rows]
    axes.set_yticks(range(len(rows)), labels, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for place in range(1, len(rows)):
        if rows[place][0] is not rows[place - 1][0]:
            axes.axhline(place - 0.5, color="#d0d0d0", linewidth=0.6)
    axes.set_xlabel(unit)
    axes.grid(axis="x", color="#e8e8e8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _key(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    names = {"better": "better (Holm)", "worse": "worse (Holm)", "": "not clear"}
    handles = [Line2D([], [], color=COLOURS[verdict], marker="o", markersize=5) for verdict in names]
    axes.legend(
        handles, list(names.values()), loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=8
    )
