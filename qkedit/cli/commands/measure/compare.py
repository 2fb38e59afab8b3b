"""`qkedit compare`: two runs on the same items, with paired tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli.delivery import deliver, plot_file
from qkedit.cli.flags.flag import flag
from qkedit.cli.output import command


def compare(
    context: typer.Context,
    a: Annotated[Path, typer.Argument(metavar="A", help="A result file, or the directory of a run: before.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="A second result of the same benchmarks: after.")],
    markdown: Annotated[Path | None, flag("--markdown", help="Write tables for a pull request: .md.")] = None,
    plot: Annotated[Path | None, flag("--plot", help="Write a plot: .png, .svg or .pdf.")] = None,
) -> None:
    """Compare two runs item by item: differences, intervals and paired tests.

    A and B are what `qkedit score --json` or `qkedit eval` wrote. Only items that both answered count.

    Example: qkedit compare base/result.json edited/result.json --plot differences.png
    """
    with command(context) as output:
        from qkedit.evaluation.files.result_files import read_scores
        from qkedit.evaluation.statistics.comparison import compare as compare_runs
        from qkedit.report.files import check_target, write_file
        from qkedit.report.plots import check_plot
        from qkedit.report.runs.comparison import RunComparisonTable, run_comparison_markdown
        from qkedit.report.runs.comparison_plot import run_comparison_plot

        if markdown is not None:
            check_target(markdown, (".md",), "--markdown")
        if plot is not None:
            check_plot(plot, "--plot")
        comparison = compare_runs(read_scores(a), read_scores(b))
        for sentence in comparison.warnings:
            output.warn(sentence)
        files: dict[Path, Callable[[], object]] = {}
        if markdown is not None:
            files[markdown] = lambda: write_file(markdown, run_comparison_markdown(comparison).encode())
        files |= plot_file(plot, partial(run_comparison_plot, comparison))
        deliver(output, comparison.as_dict(), RunComparisonTable(comparison), files)
