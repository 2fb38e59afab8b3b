"""Format several arms against one base as one table per split."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from qkedit.evaluation.statistics.arms import ArmsComparison
from qkedit.report.fitting_table import FittingTable
from qkedit.report.runs.comparison import VERDICT_STYLES, heading, legend, metric_cells


@dataclass(frozen=True)
class RunArmsTable:
    """Arms for a terminal of 80 columns or more, or for a pipe: per metric the base, and each arm below it."""

    comparison: ArmsComparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out one table per split."""
        arms = self.comparison.arms
        first = next(iter(arms.values()))
        figures = ("value", "- base", f"{first.level:.0%} interval", "p", "p Holm")
        for place, split in enumerate(first.splits):
            yield Text(heading(split), style="bold")
            table = FittingTable("metric", "arm", *figures, "", right=figures, gap=1)
            for metric in range(len(split.metrics)):
                for number, (name, comparison) in enumerate(arms.items()):
                    compared = comparison.splits[place].metrics[metric]
                    title, base, value, *rest = metric_cells(compared)
                    if not number:
                        table.add_row(title, self.comparison.base, base, "", "", "", "", "")
                    verdict = Text(compared.verdict, style=VERDICT_STYLES[compared.verdict])
                    table.add_row("", name, value, *rest, verdict)
            yield table
            yield Text()
        yield Text(legend(first), style="dim")
