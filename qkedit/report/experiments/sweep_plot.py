"""Plot a sweep as a heat map: the objective minus the base's, layers by modes, a panel per channel and kept share.

The controls are below the edits in the same colours, so that effects which random modes have as well are visible at a
glance. matplotlib is an extra (`pip install 'qkedit[plot]'`), imported only when a plot is requested.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qkedit.evaluation.metric import Better
from qkedit.laboratory.measures import MEASURES, Figure
from qkedit.laboratory.sweep import CellResult, SweepReport
from qkedit.report.plots import encoded, entitle, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sweep_plot(report: SweepReport, file_format: str) -> bytes:
    """Return the plot as `png`, `svg` or `pdf`; the same report gives the same bytes."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    settings = report.settings
    measure = MEASURES[settings.objective]
    panels = [(channel, retain) for retain in settings.retains for channel in settings.channels]
    largest = max((abs(change) for result in report.ranked for change in _changes(result)), default=0.0) or 1.0
    with matplotlib.rc_context({"svg.hashsalt": "qkedit", "font.size": 8, "axes.titlesize": 8}):
        width = max(8.0, len(panels) * (0.8 + 0.55 * len(settings.ks)) + 1.5)
        plot = Figure(figsize=(width, 2.0 + 2 * (0.6 + 0.33 * len(settings.layers))), layout="constrained")
        entitle(
            plot,
            f"{settings.model}: {measure.title} minus the base's{', points' if measure.is_share else ''}; "
            "the box marks the best cell, figures in brackets break a guard",
            9,
        )
        areas = plot.subplots(2, len(panels), sharex=True, sharey=True, squeeze=False)
        image: Any = None
        for column, (channel, retain) in enumerate(panels):
            for row, title in enumerate(("edit", f"{settings.control} controls")):
                axes = areas[row, column]
                image = _heatmap(axes, report, channel, retain, controls=row == 1, largest=largest)
                axes.set_title(f"{channel}, retain {retain:g}: {title}")
                if column == 0:
                    axes.set_ylabel("layers")
            areas[1, column].set_xlabel("k")
        plot.colorbar(image, ax=areas, label="points" if measure.is_share else measure.title, shrink=0.8)
        return encoded(plot, file_format)


def _changes(result: CellResult) -> list[float]:
    return [
        figure.difference.value
        for figure in (result.objective, result.controls)
        if figure.difference is not None and figure.difference.value is not None
    ]


def _heatmap(axes: Axes, report: SweepReport, channel: str, retain: float, *, controls: bool, largest: float) -> Any:
    from matplotlib.patches import Rectangle

    settings, measure = report.settings, MEASURES[report.settings.objective]
    scale = measure.scale
    found = {
        (result.cell.layers, result.cell.k): result
        for result in report.ranked
        if (result.cell.channel, result.cell.retain) == (channel, retain)
    }
    values = [
        [_change(found[layers, k].controls if controls else found[layers, k].objective) for k in settings.ks]
        for layers in settings.layers
    ]
    # Blue is better, whether the measure is to rise or to fall.
    colours = "RdBu" if measure.better is Better.HIGHER else "RdBu_r"
    image = axes.imshow(
        [[scale * value for value in row] for row in values],
        cmap=colours,
        vmin=-scale * largest,
        vmax=scale * largest,
        aspect="auto",
    )
    for row, layers in enumerate(settings.layers):
        for column, k in enumerate(settings.ks):
            value = values[row][column]
            if math.isnan(value):
                continue
            result = found[layers, k]
            colour = "white" if abs(value) > 0.6 * largest else "black"
            text = f"{scale * value:+.0f}".replace("-", "−").replace("−0", "+0")
            text = f"({text})" if result.broken and not controls else text
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
            if not controls and report.winner is result:
                axes.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2, clip_on=False
                    )
                )
    axes.set_xticks(range(len(settings.ks)), [str(k) for k in settings.ks])
    axes.set_yticks(range(len(settings.layers)), list(settings.layers))
    return image


def _change(figure: Figure) -> float:
    value = figure.difference.value if figure.difference is not None else None
    return math.nan if value is None else value
