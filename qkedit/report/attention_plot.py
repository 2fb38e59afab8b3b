"""Plot where answers attend: shares by layer as stacked bars, and the visual attention ratio of mentions.

matplotlib is an extra (`pip install 'qkedit[plot]'`), imported only when a plot is requested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkedit.evaluation.attention.diagnosis import AttentionDiagnosis, Shares
from qkedit.report.attention_table import GROUPS, KINDS, spelled_auroc
from qkedit.report.plots import encoded, entitle, require_matplotlib
from qkedit.selection import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "first": "#9e9e9e",
    "before": "#c9b458",
    "image": "#2a7fb8",
    "behind": "#8fc1a9",
    "generated": "#d1605e",
}
_TITLES = {"first": "first column", "before": "before the image", "behind": "behind the image", "generated": "answer"}
_LINES = {"tokens": "#444444", "true": "#2a7fb8", "hallucinated": "#d1605e"}


def attention_plot(found: AttentionDiagnosis, title: str, file_format: str) -> bytes:
    """Return the plot of a diagnosis, as `png`, `svg` or `pdf`; the same diagnosis gives the same bytes.

    The upper row shows all five groups, the lower row the shares without the first column. With ground truth, further
    columns show the tokens of true and of hallucinated mentions, and the ratios of mentions.

    Raises:
        QkeditError: matplotlib is not installed.
    """
    require_matplotlib("--plot")
    import matplotlib
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if any(getattr(layer, kind) is not None for layer in found.layers)]
    columns = len(kinds) + bool(found.mentions)
    with matplotlib.rc_context({"svg.hashsalt": "qkedit", "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(1.2 + 3.1 * columns, 6.2), layout="constrained")
        entitle(figure, title, 11)
        axes = figure.subplots(2, columns, squeeze=False)
        for place, kind in enumerate(kinds):
            _stack(axes[0][place], found, kind, GROUPS)
            _stack(axes[1][place], found, kind, GROUPS[1:])
            axes[0][place].set_title(KINDS[kind])
            axes[1][place].set_xlabel("layer")
        axes[0][0].set_ylabel("share of attention, %")
        axes[1][0].set_ylabel("without the first column, %")
        if found.mentions:
            _ratios(axes[0][-1], found)
            _image_lines(axes[1][-1], found, kinds)
        handles, names = axes[0][0].get_legend_handles_labels()
        per_line = 2 if columns == 1 else len(names)
        figure.legend(handles, names, loc="outside lower center", ncols=per_line, frameon=False)
        return encoded(figure, file_format)


def _stack(axes: Axes, found: AttentionDiagnosis, kind: str, groups: tuple[str, ...]) -> None:
    """Draw one bar per layer; layers without attention have none."""
    layers = [layer for layer in found.layers if getattr(layer, kind) is not None]
    bottom = [0.0] * len(layers)
    for group in groups:
        heights = [_share(getattr(layer, kind), group, with_first="first" in groups) for layer in layers]
        axes.bar(
            [layer.layer for layer in layers],
            heights,
            bottom=bottom,
            width=0.86,
            color=COLOURS[group],
            label=_TITLES.get(group, group),
        )
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_ylim(0, 100)
    axes.set_xlim(-0.6, len(found.layers) - 0.4)
    axes.locator_params(axis="x", integer=True)


def _share(shares: Shares, group: str, *, with_first: bool) -> float:
    share = getattr(shares, group) if with_first else shares.without_first[group]
    return 100 * (share or 0.0)


def _ratios(axes: Axes, found: AttentionDiagnosis) -> None:
    """Draw the distribution of the ratio over true and over hallucinated mentions."""
    for is_hallucinated, name in ((False, "true"), (True, "hallucinated")):
        ratios = [one.ratio for one in found.mentions or () if one.hallucinated == is_hallucinated]
        known = [ratio for ratio in ratios if ratio is not None]
        if known:
            axes.hist(
                known,
                bins=[place / 25 for place in range(26)],
                weights=[100 / len(known)] * len(known),
                histtype="step",
                linewidth=1.6,
                color=_LINES[name],
                label=f"{name} ({len(known)})",
            )
    axes.set_title(f"visual attention ratio, layers {describe(found.ratio_layers)}" if found.ratio_layers else "")
    if found.auroc is not None:
        place = "" if found.auroc_of_place is None else f"\nof a late place {spelled_auroc(found.auroc_of_place)}"
        axes.set_xlabel(f"AUROC {spelled_auroc(found.auroc)}{place}", fontsize=8)
    axes.set_ylabel("% of mentions")
    axes.legend(fontsize=8, frameon=False)


def _image_lines(axes: Axes, found: AttentionDiagnosis, kinds: list[str]) -> None:
    """Draw the image's share by layer, without the first column, of each kind of tokens."""
    for kind in kinds:
        layers = [layer for layer in found.layers if getattr(layer, kind) is not None]
        shares = [_share(getattr(layer, kind), "image", with_first=False) for layer in layers]
        axes.plot([layer.layer for layer in layers], shares, color=_LINES[kind], marker=".", label=KINDS[kind])
    axes.set_title("image, without the first column")
    axes.set_xlabel("layer")
    axes.set_ylabel("%")
    axes.set_ylim(0, 100)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
