"""Format several arms against one base as one table per split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from qkedit.evaluation.statistics.arms import ArmsComparison
from qkedit.evaluation.statistics.comparison import ComparedMetric
from qkedit.report.fitting_table import FittingTable
from qkedit.report.runs.comparison import VERDICT_STYLES, ends, heading, legend, metric_cells
from qkedit.report.terminal_text import on_one_line

# What the figures leave of 80 columns.
_TITLE_WIDTH = 20


@dataclass(frozen=True)
class RunArmsTable:
    """Arms for a terminal of 80 columns or more, or for a pipe: per metric the base, and each arm below it.

    Attributes:
        comparison: the arms.
        titles: the text for each arm in the table, by its name; the name itself by default.
    """

    comparison: ArmsComparison
    titles: Mapping[str, str] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out one table per split."""
        arms = self.comparison.arms
        first = next(iter(arms.values()))
        span = f"{first.level:.0%} interval"
        for place, split in enumerate(first.splits):
            yield Text(heading(split), style="bold")
            figures = ("value", span, "- base", span, "p Holm")
            table = FittingTable("arm", *figures, "", right=figures, gap=1)
            for metric in range(len(split.metrics)):
                for number, (name, comparison) in enumerate(arms.items()):
                    compared = comparison.splits[place].metrics[metric]
                    title, base, value, difference, interval, _, p = metric_cells(compared)
                    if not number:
                        table.add_row(Text(title, style="bold"), "", "", "", "", "", "")
                        table.add_row(f"  {self.comparison.base}", base, _own(compared, 0), "", "", "", "")
                    verdict = Text(compared.verdict, style=VERDICT_STYLES[compared.verdict])
                    cells = (value, _own(compared, 1), difference, interval, p)
                    table.add_row(_folded(self.titles.get(name, name)), *cells, verdict)
            yield table
            yield Text()
        yield Text(legend(first), style="dim")


def _own(compared: ComparedMetric, run: int) -> str:
    """Return the interval of a run's own value: of the base, 0, or of the arm, 1."""
    found = compared.of_each[run]
    return ends(compared, found.low, found.high)


def _folded(title: str) -> Text:
    """Return an indented title in lines of the width of its column, broken before options where possible."""
    pieces = [
        piece[start : start + _TITLE_WIDTH - 2]
        for piece in re.findall(r"[^:,]*[:,]?", on_one_line(title))
        for start in range(0, len(piece), _TITLE_WIDTH - 2)
    ]
    lines = [""]
    for piece in pieces:
        if len(lines[-1] + piece) > _TITLE_WIDTH - 2:
            lines.append("")
        lines[-1] += piece
    return Text("\n".join(f"  {line}" for line in lines))
