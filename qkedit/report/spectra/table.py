"""Format spectra as a table for a terminal, with as many columns as fit, in characters that its encoding has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from qkedit.inspection.comparison import Comparison
from qkedit.inspection.spectra import NO_OFFSET, Inspection
from qkedit.report.fitting_table import FittingTable
from qkedit.report.spectra.summary import SpectrumRow, offset_text, rows_of
from qkedit.report.terminal_text import on_one_line

BLOCKS = "▁▂▃▄▅▆▇█"
# For terminals whose encoding has no block characters.
PLAIN_BLOCKS = ".:-=+*%#"
# The inline spectrum shows σ down to this share of σ₁, on a logarithmic scale.
LOWEST_SHOWN = 1e-4
NARROWEST_SPECTRUM, WIDEST_SPECTRUM = 8, 16
MOST_VALUES_SHOWN = 8
VALUE_WIDTH = 8  # "1.23e-05"


@dataclass(frozen=True)
class SpectrumTable:
    """The rows of an inspection, one per layer or one per head."""

    inspection: Inspection
    every_head: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the table for the available width."""
        plain = options.ascii_only
        rows = rows_of(self.inspection, every_head=self.every_head)
        columns = [(_title(name), [_cell(name, row) for row in rows]) for name in self._names(rows)]
        taken = sum(max(len(title), *map(len, cells)) + 2 for title, cells in columns)
        room = options.max_width - taken - NARROWEST_SPECTRUM
        shown = min(len(rows[0].singular_values), MOST_VALUES_SHOWN, max(1, room // (VALUE_WIDTH + 1)))
        shown = min(shown, max((head.k for layer in self.inspection.layers for head in layer.heads), default=1) or 1)
        spectrum_width = NARROWEST_SPECTRUM + max(0, room - shown * (VALUE_WIDTH + 1))
        spectrum_width = min(spectrum_width, WIDEST_SPECTRUM)

        places = 2 if self.every_head else 1
        titles = [title for title, _ in columns]
        sigmas = [f"{'s' if plain else 'σ'}{number}" for number in range(1, shown + 1)]
        titles[places:places] = sigmas
        table = FittingTable(*titles, "spectrum", right=titles, gap=1)
        for place, row in enumerate(rows):
            cells = [column[place] for _, column in columns]
            values = [f"{value:.3g}" for value in row.singular_values[:shown]]
            spectrum = inline_spectrum(row.singular_values, spectrum_width, plain=plain)
            table.add_row(*map(Text, (*cells[:places], *values, *cells[places:], spectrum)))
        yield table
        yield Text(self._legend(plain), style="dim")

    def _names(self, rows: list[SpectrumRow]) -> list[str]:
        names = ["layer", "head"] if self.every_head else ["layer"]
        names += ["top", "rank", "symmetric", "gap"]
        if any(row.unrealized_share is not None for row in rows):
            names += ["unrealized", "leak"]
        return names + [f"kept {part}" for part in rows[0].kept]

    def _legend(self, plain: bool) -> str:
        inspection = self.inspection
        sigma = "s" if plain else "σ"
        sentences = [
            f"{inspection.channel} channel"
            + (f" at offset {offset_text(inspection.offset)}" if inspection.offset != NO_OFFSET else "")
            + ("" if self.every_head else "; each row holds the medians of its heads"),
            f"top: energy share of the dominant modes ({inspection.wanted})",
            "rank: effective rank",
            "symm: symmetric share of the energy",
            f"gap: {'' if self.every_head else 'smallest '}ratio of {sigma} at the cut",
            f"spectrum: {sigma} on a log scale down to {LOWEST_SHOWN:g} of the first",
        ]
        if inspection.channel != "full":
            sentences.insert(
                4,
                "unreal, leak: shares of the dominant modes that queries cannot write, that go to the other channel",
            )
        if inspection.offset != NO_OFFSET:
            parts = len(inspection.layers[0].heads[0].kept or {}) > 1
            alone = "; t, h, w: where only that part of the position changes" if parts else ""
            sentences.insert(-1, f"kept: share of the dominant subspace at offset 0 that is still dominant{alone}")
        return ". ".join(sentences) + "."


@dataclass(frozen=True)
class ComparisonTable:
    """Two models side by side, one row per layer or one per head."""

    comparison: Comparison
    every_head: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the table."""
        plain = options.ascii_only
        sigma, arrow = ("s1", "->") if plain else ("σ1", "→")
        titles = ["layer", *(["head"] if self.every_head else []), sigma, "", "", "top", "", ""]
        titles += ["query side", "key side"]
        table = FittingTable(*titles, right=titles, gap=1)
        for layer in self.comparison.layers:
            groups = [[head] for head in layer.heads] if self.every_head else [list(layer.heads)]
            for heads in groups:
                cells = [str(layer.layer), *([str(heads[0].head)] if self.every_head else [])]
                cells += [f"{median([head.before[0] for head in heads]):.3g}", arrow]
                cells += [f"{median([head.after[0] for head in heads]):.3g}"]
                cells += [f"{median([head.energy_top_k_before for head in heads]):.1%}", arrow]
                cells += [f"{median([head.energy_top_k_after for head in heads]):.1%}"]
                for side in ("query_side_angles", "key_side_angles"):
                    angles = [max(getattr(head, side)) for head in heads if getattr(head, side)]
                    cells.append(f"{median(angles):.1f}{' deg' if plain else '°'}" if angles else "-")
                table.add_row(*map(Text, cells))
        yield table
        yield Text(
            f"{on_one_line(self.comparison.model)} {arrow} {on_one_line(self.comparison.other)}, "
            f"{self.comparison.channel} channel"
            + ("" if self.every_head else "; each row holds the medians of its heads")
            + f". top: energy share of the dominant modes ({self.comparison.wanted}). Sides: largest principal angle "
            "between the dominant subspaces of the two models.",
            style="dim",
        )


def inline_spectrum(values: tuple[float, ...], width: int, *, plain: bool = False) -> str:
    """Draw descending values as `width` blocks on a logarithmic scale; the tallest is σ₁."""
    blocks = PLAIN_BLOCKS if plain else BLOCKS
    width = min(width, len(values))
    if values[0] <= 0:
        return blocks[0] * width
    heights = []
    for place in range(width):
        share = max(values[place * len(values) // width] / values[0], LOWEST_SHOWN)
        heights.append(1 - math.log(share) / math.log(LOWEST_SHOWN))
    return "".join(blocks[round(height * (len(blocks) - 1))] for height in heights)


def _title(name: str) -> str:
    short = {"symmetric": "symm", "unrealized": "unreal", "kept all": "kept"}
    short |= {"kept temporal": "t", "kept height": "h", "kept width": "w"}
    return short.get(name, name)


def _cell(name: str, row: SpectrumRow) -> str:
    if name.startswith("kept "):
        return _percent(row.kept.get(name.removeprefix("kept ")))
    if name in ("layer", "head"):
        return str(row.layer) if name == "layer" else row.heads
    if name == "rank":
        return f"{row.effective_rank:.1f}"
    if name == "gap":
        return "-" if row.gap_at_k is None else f"{row.gap_at_k:.2f}"
    shares = {
        "top": row.energy_top_k,
        "symmetric": row.symmetric_share,
        "unrealized": row.unrealized_share,
        "leak": row.leak,
    }
    return _percent(shares[name])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
