"""Plot arms side by side: every value with its interval, the seeds of controls as a bar, the base as a line.

matplotlib is an extra (`pip install 'qkedit[plot]'`), imported only when a plot is requested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qkedit.evaluation.metric import Better
from qkedit.laboratory.measures import CAPTIONS, MEASURES, Measure, Row
from qkedit.report.figures import improves
from qkedit.report.plots import encoded, entitle, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = ("chair_s", "chair_i", "recall", "mean_words", "hr_random", "hr_popular", "hr_adversarial", "f1_adversarial")
# Distinguishable for readers who cannot tell red from green.
COLOURS = {True: "#0072b2", False: "#d55e00", None: "#606060"}
ARROWS = {Better.HIGHER: " ↑", Better.LOWER: " ↓", Better.NEITHER: ""}


def arms_plot(rows: Sequence[Row], title: str, file_format: str) -> bytes:
    """Return the plot as `png`, `svg` or `pdf`. The base is the first row; the same rows give the same bytes."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    measures = [MEASURES[name] for name in SHOWN if name in rows[0].figures]
    with matplotlib.rc_context({"svg.hashsalt": "qkedit", "font.size": 9, "axes.titlesize": 9}):
        figure = Figure(figsize=(11, 1.8 + 0.5 * len(rows)), layout="constrained")
        entitle(figure, title, 10)
        areas = figure.subplots(2, (len(measures) + 1) // 2, sharey=True)
        for axes, measure in zip(areas.flat, measures, strict=False):
            _draw(axes, rows, measure)
        _legend(figure)
        return encoded(figure, file_format)


def _legend(figure: Figure) -> None:
    """Draw the legend of colours, bars and lines below the panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = {True: "better than the base", False: "worse", None: "not clearly different"}
    points = [
        Line2D([], [], color=COLOURS[verdict], marker="o", markersize=4, label=name) for verdict, name in names.items()
    ]
    seeds = Patch(color="#d8d8d8", label="lowest to highest seed")
    base = Line2D([], [], color="black", linewidth=0.7, linestyle=":", label="base")
    figure.legend(handles=[*points, seeds, base], loc="outside lower center", ncols=5, frameon=False, fontsize=8)


def _draw(axes: Axes, rows: Sequence[Row], measure: Measure) -> None:
    scale = measure.scale
    for place, row in enumerate(rows):
        figure = row.figures[measure.name]
        value, low, high = figure.interval.value, figure.interval.low, figure.interval.high
        if value is None:
            continue
        colour = COLOURS[improves(measure, figure.difference)]
        if figure.least is not None and figure.most is not None:
            width = scale * (figure.most - figure.least)
            axes.barh(place, width, left=scale * figure.least, height=0.5, color="#d8d8d8")
        if low is not None and high is not None:
            axes.plot([scale * low, scale * high], [place, place], color=colour, linewidth=1.6)
        axes.plot(scale * value, place, "o", color=colour, markersize=4)
    base = rows[0].figures[measure.name].interval.value
    if base is not None:
        axes.axvline(scale * base, color="black", linewidth=0.7, linestyle=":")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.use_sticky_edges = False  # otherwise the axis would end where the bars end
    axes.margins(x=0.06)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    split = "" if measure.part == CAPTIONS else f", {measure.part}"
    axes.set_title(f"{measure.title}{split}{' (%)' if measure.is_share else ''}{ARROWS[measure.better]}")
    axes.grid(axis="x", alpha=0.3)
