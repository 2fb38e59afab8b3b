"""Plot spectra: the energy of the dominant modes, the decay of the spectra, the symmetry of the products.

matplotlib is an extra (`pip install 'qkedit[plot]'`), imported only when a plot is requested.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qkedit.inspection.spectra import Inspection
from qkedit.report.plots import encoded, entitle, require_matplotlib
from qkedit.report.spectra.summary import layer_row, offset_text
from qkedit.selection import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# With more layers than this a legend is unreadable; a colour bar replaces it.
LARGEST_LEGEND = 8
# Below this share of σ₁ spectra are rounding, which would dominate the axis.
LOWEST_SHOWN = 1e-8


def spectra_plot(inspection: Inspection, file_format: str) -> bytes:
    """Return the plot as `png`, `svg` or `pdf`; the same inspection gives the same bytes."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "qkedit", "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(9, 7.5), layout="constrained")
        areas = figure.subplot_mosaic([["energy", "energy"], ["spectra", "symmetry"]], height_ratios=[1.2, 1])
        entitle(figure, _title(inspection), 11)
        _energy(figure, areas["energy"], inspection)
        _spectra(figure, areas["spectra"], inspection)
        _symmetry(areas["symmetry"], inspection)
        return encoded(figure, file_format)


def _title(inspection: Inspection) -> str:
    layers = describe([layer.layer for layer in inspection.layers])
    place = f", offset {offset_text(inspection.offset)}" if any(inspection.offset) else ""
    return f"{inspection.model}: query-key spectra, layers {layers}\n{inspection.channel} channel{place}"


def _energy(figure: Figure, axes: Axes, inspection: Inspection) -> None:
    heads = sorted({head.head for layer in inspection.layers for head in layer.heads})
    rows = []
    for layer in inspection.layers:
        shares = {head.head: 100 * head.energy_top_k for head in layer.heads}
        rows.append([shares.get(head, math.nan) for head in heads])
    image = axes.imshow(rows, aspect="auto", cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    axes.set_title(f"Energy share of the dominant modes ({inspection.wanted})")
    axes.set_xlabel("query head")
    axes.set_ylabel("layer")
    _number(axes.xaxis, heads)
    _number(axes.yaxis, [layer.layer for layer in inspection.layers])
    figure.colorbar(image, ax=axes, label="share of Σσ² (%)", pad=0.01)


def _number(axis: Any, numbers: list[int], room: int = 32) -> None:
    step = math.ceil(len(numbers) / room)
    axis.set_ticks(range(0, len(numbers), step), [str(number) for number in numbers[::step]])


def _spectra(figure: Figure, axes: Axes, inspection: Inspection) -> None:
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    layers = [layer.layer for layer in inspection.layers]
    colours = matplotlib.colormaps["plasma"]
    scale = Normalize(layers[0], max(layers[-1], layers[0] + 1))
    lowest = 1.0
    for layer in inspection.layers:
        values = layer_row(layer).singular_values
        shares = [value / values[0] for value in values if value > LOWEST_SHOWN * values[0]]
        lowest = min([lowest, *shares])
        # The palest tenth of the colour map is invisible on white.
        colour = colours(0.9 * scale(layer.layer))
        axes.plot(range(1, len(shares) + 1), shares, color=colour, linewidth=1.2, label=f"layer {layer.layer}")
    axes.set_yscale("log")
    axes.set_ylim(lowest / 1.5, 1.5)
    axes.set_title("Median σ of each layer's heads")
    axes.set_xlabel("mode i")
    axes.set_ylabel("σᵢ / σ₁")
    axes.grid(alpha=0.3)
    if len(layers) <= LARGEST_LEGEND:
        axes.legend(fontsize=7)
    else:
        from matplotlib.colors import ListedColormap

        shown = ListedColormap([colours(0.9 * place / 255) for place in range(256)])
        figure.colorbar(ScalarMappable(scale, shown), ax=axes, label="layer")


def _symmetry(axes: Axes, inspection: Inspection) -> None:
    rows = [layer_row(layer) for layer in inspection.layers]
    places = range(len(rows))
    symmetric = [100 * (row.symmetric_share or 0.0) for row in rows]
    rest = [0.0 if row.symmetric_share is None else 100 - share for row, share in zip(rows, symmetric, strict=True)]
    axes.bar(places, symmetric, color="#3b6fb6", label="symmetric")
    axes.bar(places, rest, bottom=symmetric, color="#e0a030", label="antisymmetric")
    axes.axhline(50, color="black", linewidth=0.6, linestyle=":")
    axes.set_ylim(0, 100)
    axes.set_title("Symmetric and antisymmetric energy")
    axes.set_xlabel("layer")
    axes.set_ylabel("share of ‖M‖² (%), median over heads")
    _number(axes.xaxis, [row.layer for row in rows], room=16)
    axes.legend(fontsize=8, loc="lower center", ncols=2, framealpha=0.95)
