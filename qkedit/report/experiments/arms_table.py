"""Tables of arms side by side for a terminal of 80 columns: one for captions, one per split of the questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from qkedit.errors import counted
from qkedit.laboratory.measures import CAPTIONS, MEASURES, QUALITY, Measure, Row
from qkedit.report.figures import Spelling, improves
from qkedit.report.fitting_table import FittingTable

STYLES = {True: "green", False: "red", None: "dim"}
# Shown without an interval where space is short: it is descriptive, and no conclusion rests on it.
BARE = ("mean_words",)
TITLES = {CAPTIONS: "Captions", QUALITY: "Quality"}


@dataclass(frozen=True)
class ArmsTables:
    """The rows of a comparison, each value with its interval and, below it, its difference from the base."""

    rows: Sequence[Row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the tables out."""
        plain = options.ascii_only
        shown = [measure for measure in MEASURES.values() if measure.name in self.rows[0].figures]
        for part in dict.fromkeys(measure.part for measure in shown):
            yield self._table(part, [measure for measure in shown if measure.part == part], plain)
            yield Text()
        minus = "-" if plain else "−"
        level = self.rows[0].figures[shown[0].name].interval.level
        yield Text(
            f"In brackets {level:.0%} intervals over scenes (bootstrap). "
            f"{minus} base: difference from the base on the same scenes; coloured where its interval excludes 0. "
            "Controls: mean over their seeds, and the range from the lowest to the highest seed.",
            style="dim",
        )

    def _table(self, part: str, measures: Sequence[Measure], plain: bool) -> FittingTable:
        spelled = [(measure, Spelling(measure, plain)) for measure in measures]
        first = TITLES.get(part) or f"{part.capitalize()} q."
        table = FittingTable(first, *(spelling.title for _, spelling in spelled))
        for row in self.rows:
            cells = [
                spelling.value(row.figures[measure.name].interval.value)
                if measure.name in BARE
                else spelling.interval(row.figures[measure.name].interval)
                for measure, spelling in spelled
            ]
            table.add_row(*map(Text, (row.name, *cells)))
            if len(row.arms) > 1:
                ranges = ["" if m.name in BARE else s.seeds(row.figures[m.name]) for m, s in spelled]
                table.add_row(*(Text(cell, style="dim") for cell in (f"  {counted(len(row.arms), 'seed')}", *ranges)))
            differences = [(measure, spelling, row.figures[measure.name].difference) for measure, spelling in spelled]
            if any(difference is not None for _, _, difference in differences):
                table.add_row(
                    Text("  - base" if plain else "  − base", style="dim"),
                    *(
                        Text(
                            spelling.change(difference) if measure.name in BARE else spelling.difference(difference),
                            style=STYLES[improves(measure, difference)],
                        )
                        for measure, spelling, difference in differences
                    ),
                )
        return table
