"""Charts in SVG with classes instead of colours, so that the page's style sheet sets their appearance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH = 460
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 8, 34


def heat_map(rows: Sequence[Sequence[float | None]], row_names: Sequence[int], column_names: Sequence[int]) -> str:
    """Draw shares (0–1) as cells, one row per layer and one column per head; None is an empty cell."""
    size = max(8, min(32, (940 - LEFT) // len(column_names), 560 // len(rows)))
    width, height = LEFT + size * len(column_names) + 70, TOP + size * len(rows) + BOTTOM
    parts = _scale(LEFT + size * len(column_names) + 16)
    for y, (layer, row) in enumerate(zip(row_names, rows, strict=True)):
        for x, (head, share) in enumerate(zip(column_names, row, strict=True)):
            place = f'x="{LEFT + x * size}" y="{TOP + y * size}" width="{size}" height="{size}"'
            if share is None:
                parts.append(f'<rect class="none" {place}/>')
            else:
                tip = f"<title>layer {layer}, head {head}: {share:.1%}</title>"
                parts.append(f'<rect class="cell" {place} fill-opacity="{share:.3f}">{tip}</rect>')
    step = math.ceil(12 / size)
    for y in range(0, len(rows), step):
        parts.append(_text(LEFT - 5, TOP + (y + 0.5) * size + 4, str(row_names[y]), "end"))
    step = math.ceil(18 / size)
    for x in range(0, len(column_names), step):
        parts.append(_text(LEFT + (x + 0.5) * size, TOP + len(rows) * size + 14, str(column_names[x])))
    parts.append(_text(LEFT + size * len(column_names) / 2, height - 4, "query head"))
    parts.append(_upright(TOP + size * len(rows) / 2, "layer"))
    return _svg(width, height, parts, "energy share of the dominant modes by layer and head")


def _scale(x: float) -> list[str]:
    """Draw the colour scale of a heat map."""
    parts = []
    for step in range(5):
        y, share = TOP + 16 * step, 1 - step / 4
        parts.append(f'<rect class="cell" x="{x}" y="{y}" width="16" height="16" fill-opacity="{share}"/>')
        parts.append(_text(x + 21, y + 12, f"{share:.0%}", "start"))
    return parts


def curves(series: Sequence[tuple[int, Sequence[float]]], lowest: float) -> str:
    """Draw one falling curve per layer on a logarithmic scale, with values relative to the first."""
    height, plot_height, plot_width = 280, 280 - TOP - BOTTOM, WIDTH - LEFT - RIGHT
    decades = max(1, math.ceil(-math.log10(lowest)))
    longest = max(len(values) for _, values in series)
    parts = []

    def across(place: float) -> float:
        return LEFT + plot_width * place / max(1, longest - 1)

    def down(value: float) -> float:
        return TOP - plot_height * math.log10(value) / decades

    for decade in range(decades + 1):
        y = down(10.0**-decade)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = "1" if decade == 0 else f"1e-{decade}"
        parts.append(_text(LEFT - 5, y + 4, label, "end"))
    for place in sorted({0, *range(longest // 4, longest, max(1, longest // 4)), longest - 1}):
        parts.append(_text(across(place), TOP + plot_height + 14, str(place + 1)))
    for number, (layer, values) in enumerate(series):
        points = " ".join(
            f"{across(place):.1f},{down(value):.1f}" for place, value in enumerate(values) if value >= lowest
        )
        hue = 260 - 240 * number / max(1, len(series) - 1)
        curve = f'<polyline class="curve" style="--hue: {hue:.0f}" points="{points}">'
        parts.append(f"{curve}<title>layer {layer}</title></polyline>")
    parts.append(_text(LEFT + plot_width / 2, height - 4, "mode i"))
    parts.append(_upright(TOP + plot_height / 2, "σᵢ / σ₁"))
    return _svg(WIDTH, height, parts, "median spectrum of each layer's heads")


def share_bars(shares: Sequence[tuple[int, float | None]], names: tuple[str, str]) -> str:
    """Draw one bar per layer: the share (0–1) of the first name below, the rest for the second name above."""
    height, plot_height, plot_width = 280, 280 - TOP - BOTTOM, WIDTH - LEFT - RIGHT
    step = plot_width / len(shares)
    parts = []
    for number, (layer, share) in enumerate(shares):
        if share is None:
            continue
        x, split = LEFT + number * step, TOP + plot_height * (1 - share)
        place = f'x="{x + 0.08 * step:.1f}" width="{0.84 * step:.1f}"'
        tip = f"<title>layer {layer}: {share:.1%} {names[0]}, {1 - share:.1%} {names[1]}</title>"
        parts.append(f'<rect class="{names[1]}" {place} y="{TOP}" height="{split - TOP:.1f}">{tip}</rect>')
        below = TOP + plot_height - split
        parts.append(f'<rect class="{names[0]}" {place} y="{split:.1f}" height="{below:.1f}">{tip}</rect>')
    every = math.ceil(18 / step)
    for number in range(0, len(shares), every):
        parts.append(_text(LEFT + (number + 0.5) * step, TOP + plot_height + 14, str(shares[number][0])))
    for percent in (0, 50, 100):
        y = TOP + plot_height * (1 - percent / 100)
        parts.append(f'<line class="axis" x1="{LEFT - 3}" x2="{LEFT}" y1="{y}" y2="{y}"/>')
        parts.append(_text(LEFT - 5, y + 4, f"{percent}", "end"))
    parts.append(_text(LEFT + plot_width / 2, height - 4, "layer"))
    parts.append(_upright(TOP + plot_height / 2, "share of ‖M‖² (%)"))
    return _svg(WIDTH, height, parts, f"{names[0]} and {names[1]} share of the energy by layer")


def _svg(width: float, height: float, parts: Sequence[str], name: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-label="{escape(name)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _upright(y: float, text: str) -> str:
    return f'<text transform="translate(11 {y:.1f}) rotate(-90)" text-anchor="middle">{escape(text)}</text>'
