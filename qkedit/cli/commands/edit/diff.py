"""`qkedit diff`: which tensors of two checkpoints differ, and by how much."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli import completion, options
from qkedit.cli.output import Output, command


def diff(
    context: typer.Context,
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A directory, a hub id, an alias or 'demo'.", autocompletion=completion.models
        ),
    ],
    second: Annotated[
        str,
        typer.Argument(
            metavar="B",
            help="The other checkpoint.",
            autocompletion=completion.models,
        ),
    ],
    extract: Annotated[
        Path | None,
        options.flag("--extract", help="Write the difference as a delta of A to this directory, for `qkedit apply`."),
    ] = None,
    only_queries: Annotated[
        bool,
        options.flag("--only-queries", help="With --extract: leave out what differs beside query projections."),
    ] = False,
    overwrite: options.OverwriteOption = False,
    architectures: options.ArchitecturesOption = None,
) -> None:
    """Show which tensors of two checkpoints differ, and by how much.

    With --extract, the difference becomes an edit: also one that somebody else
    made.

    Example: qkedit diff ./Qwen2-VL-7B-Instruct ./edited
    """
    with command(context, architectures) as output:
        from rich.console import Group

        from qkedit.cli.progress import reading_bar
        from qkedit.report.fitting_table import FittingTable
        from qkedit.steering.diff import diff as compare

        if extract is not None:
            _extract(output, first, second, extract, only_queries=only_queries, overwrite=overwrite)
            return
        with reading_bar(output) as on_bytes:
            differences, compared = compare(first, second, on_bytes=on_bytes)
        figures = ("change", "largest", "elements")
        table = FittingTable("tensor", *figures, right=figures, breaking=("tensor",))
        for difference in differences:
            relative, largest = difference.relative_change, difference.largest_change
            table.add_row(
                difference.name,
                difference.what if relative is None else _change(relative),
                "" if largest is None else f"{largest:.2g}",
                "" if difference.elements_changed is None else f"{difference.elements_changed:.1%}",
            )
        closing = f"{len(differences)} of {compared} tensors differ."
        fields = {"compared": compared, "differences": [asdict(difference) for difference in differences]}
        output.result(fields, Group(table, closing) if differences else closing)


def _extract(output: Output, base: str, edited: str, out: Path, *, only_queries: bool, overwrite: bool) -> None:
    from qkedit.cli.commands.edit.steer import print_report
    from qkedit.cli.progress import progress_bar
    from qkedit.steering.extraction import extract
    from qkedit.steering.options import OutputOptions

    target = OutputOptions(out, "delta", overwrite=overwrite)
    with progress_bar(output) as progress:
        report = extract(base, edited, output=target, only_queries=only_queries, progress=progress)
    print_report(output, report, ("extracted", f"{edited} minus {base}"))


def _change(relative: float) -> str:
    return f"{relative:.2%}" if relative < 1000 else f"{relative:.2g} times"
