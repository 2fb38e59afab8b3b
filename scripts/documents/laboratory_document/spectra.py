"""Compare the spectra of a trained model's query-key products with those of an untrained twin of its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from qkedit.inspection.spectra import inspect
from qkedit.report.plots import encoded
from qkedit.report.spectra.summary import SpectrumRow, layer_row
from qkedit.runtime.generation import directory_of
from qkedit.spectral.suppression import Suppression
from qkedit.steering.plan import plan_for
from qkedit.steering.steer_options import SteerOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN: tuple[tuple[Callable[[SpectrumRow], float], str], ...] = (
    (lambda row: row.singular_values[0], "{:.2f}"),
    (lambda row: row.energy_top_k, "{:.0%}"),
    (lambda row: row.effective_rank, "{:.1f}"),
    (lambda row: row.symmetric_share or 0.0, "{:.0%}"),
)


def untrained_twin(model: str, directory: Path, seed: int) -> Path:
    """Write a model of the same configuration with transformers' initial weights."""
    config = AutoConfig.from_pretrained(directory_of(model))
    torch.manual_seed(seed)
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    return directory


def spectrum_rows(model: str, k: int) -> list[SpectrumRow]:
    """Return one row per layer: medians over its heads."""
    options = SteerOptions("all", suppression=Suppression(k=k), device="cpu")
    return [layer_row(layer) for layer in inspect(plan_for(model, options)).layers]


def table(trained: Sequence[SpectrumRow], untrained: Sequence[SpectrumRow], k: int) -> Iterator[str]:
    """Yield the lines of a Markdown table: one row per layer, and their medians."""
    yield (
        f"| layer | σ₁ trained | untrained | top {k} trained | untrained | effective rank trained | untrained "
        "| symmetric trained | untrained |"
    )
    yield "|--:|" + "--:|" * 8
    columns = [[show(row) for row in rows] for show, _ in SHOWN for rows in (trained, untrained)]
    forms = [form for _, form in SHOWN for _ in range(2)]
    for place, row in enumerate(trained):
        yield _line(str(row.layer), [column[place] for column in columns], forms)
    yield _line("median", [median(column) for column in columns], forms)


def _line(name: str, values: Sequence[float], forms: Sequence[str]) -> str:
    cells = [form.format(value) for value, form in zip(values, forms, strict=True)]
    return f"| {' | '.join([name, *cells])} |"


def plot(trained: Sequence[SpectrumRow], untrained: Sequence[SpectrumRow]) -> bytes:
    """Return a plot of the spectra of both models, side by side, as PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        areas = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, rows, title in zip(areas, (trained, untrained), ("trained", "untrained twin"), strict=True):
            _draw(axes, rows, title)
        areas[0].set_ylabel("σᵢ / σ₁, median over heads")
        areas[1].legend(fontsize=7, title="layer", ncols=2)
        return encoded(figure, "png")


def _draw(axes: Axes, rows: Sequence[SpectrumRow], title: str) -> None:
    import matplotlib

    colours = matplotlib.colormaps["plasma"]
    for place, row in enumerate(rows):
        shares = [value / row.singular_values[0] for value in row.singular_values]
        axes.plot(
            range(1, len(shares) + 1), shares, color=colours(0.9 * place / max(len(rows) - 1, 1)), label=str(row.layer)
        )
    axes.set_title(title)
    axes.set_xlabel("mode i")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
