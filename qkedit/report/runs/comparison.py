"""Format the comparison of two runs: as a table for a terminal or a pipe, and as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from qkedit.errors import counted
from qkedit.evaluation.metric import Unit
from qkedit.evaluation.statistics.comparison import SIGNIFICANT, ComparedMetric, ComparedSplit, RunComparison
from qkedit.report.files import printable
from qkedit.report.fitting_table import FittingTable
from qkedit.report.terminal_text import lines, on_one_line

SMALLEST_P_SHOWN = 0.001
VERDICT_STYLES = {"better": "green", "worse": "red", "": ""}


@dataclass(frozen=True)
class RunComparisonTable:
    """A comparison for a terminal of 80 columns or more, or for a pipe."""

    comparison: RunComparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out one table per split, with the same column widths in all of them."""
        names = [compared.difference.metric for split in self.comparison.splits for compared in split.metrics]
        yield Text(lines(f"A: {self.comparison.a}", f"B: {self.comparison.b}"))
        for split in self.comparison.splits:
            yield Text(f"\n{heading(split)}", style="bold")
            figures = _titles(self.comparison)
            table = FittingTable("metric", *figures, "", right=figures, gap=1)
            widths = (max(map(len, names)), 6, 6, 7, 16, 6, 6, 0)
            for column, width in zip(table.columns, widths, strict=True):
                column.min_width = width
            for compared in split.metrics:
                cells = metric_cells(compared)
                table.add_row(*cells, Text(compared.verdict, style=VERDICT_STYLES[compared.verdict]))
            yield table
        yield Text(f"\n{legend(self.comparison)}", style="dim")


def run_comparison_markdown(comparison: RunComparison) -> str:
    """Return the comparison as Markdown: one table per split, warnings as quotes."""
    return printable("\n".join(_markdown_lines(comparison)) + "\n")


def _markdown_lines(comparison: RunComparison) -> Iterator[str]:
    yield f"**A**: {_code(comparison.a)}  \n**B**: {_code(comparison.b)}"
    for split in comparison.splits:
        yield f"\n### {heading(split)}\n"
        yield f"| metric | {' | '.join(_titles(comparison))} | |"
        yield "|:--|" + "--:|" * 6 + ":--|"
        for compared in split.metrics:
            name, *figures = metric_cells(compared)
            verdict = f"**{compared.verdict}**" if compared.verdict else ""
            yield f"| {_code(name)} | {' | '.join(figures)} | {verdict} |"
        for sentence in split.warnings:
            yield f"\n> **Warning**: {on_one_line(sentence)}."
    yield f"\n{legend(comparison)}"


def _code(name: str) -> str:
    return f"`{on_one_line(name).replace('`', chr(39))}`"


def heading(split: ComparedSplit) -> str:
    """Return the title of the table of a split."""
    groups = "" if split.groups == split.n else f" in {counted(split.groups, 'group')}"
    left_out = f"; left out: {split.left_out[0]} of A, {split.left_out[1]} of B" if any(split.left_out) else ""
    return f"{on_one_line(split.name)} ({split.rule_kind} {split.rule}): {counted(split.n, 'item')}{groups}{left_out}"


def _titles(comparison: RunComparison) -> tuple[str, ...]:
    return ("A", "B", "B - A", f"{comparison.level:.0%} interval", "p", "p Holm")


def metric_cells(compared: ComparedMetric) -> tuple[str, ...]:
    """Return the name of a metric, both values, the difference, its interval, p, and the corrected p."""
    found = compared.difference
    decimals = _decimals(compared)
    return (
        found.metric,
        *("-" if value is None else f"{value:.{decimals}f}" for value in (found.a, found.b)),
        _signed(found.value, decimals),
        ends(compared, found.low, found.high, sign="+"),
        _p(found.p),
        _p(compared.p_corrected),
    )


def ends(compared: ComparedMetric, low: float | None, high: float | None, *, sign: str = "") -> str:
    """Return an interval with the decimals of its metric, and with `+` before positive ends if that is `sign`."""
    if low is None or high is None:
        return "-"
    decimals = _decimals(compared)
    return f"{low:{sign}.{decimals}f} to {high:{sign}.{decimals}f}"


def _decimals(compared: ComparedMetric) -> int:
    """Return 3 for shares, which are below 1, and for CIDEr; 1 for words, points and percentages."""
    if compared.metric.unit is Unit.HUNDREDTHS:
        return 3
    return 3 if max(compared.difference.a or 0, compared.difference.b or 0) <= 1 else 1


def _signed(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:+.{decimals}f}"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return f"<{SMALLEST_P_SHOWN:.3f}" if p < SMALLEST_P_SHOWN else f"{p:.3f}"


def legend(comparison: RunComparison) -> str:
    """Return the method of the intervals and p-values, and the meaning of the verdicts."""
    tests = {compared.difference.test for split in comparison.splits for compared in split.metrics}
    names = ["McNemar's exact test for accuracy"] if "mcnemar" in tests else []
    names.append("paired bootstrap over groups" + (" for the other metrics" if names else ""))
    return (
        f"Intervals: paired bootstrap over groups. p: {', '.join(names)}. p Holm: corrected for all "
        f"{counted(comparison.tests, 'test')} here; better and worse mean that it is below {SIGNIFICANT:g}."
    )
