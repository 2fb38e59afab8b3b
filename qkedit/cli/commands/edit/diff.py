"""`qkedit diff`: which tensors of two checkpoints differ, and by how much."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from qkedit.cli import completion, options
from qkedit.cli.output import command


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
    architectures: options.ArchitecturesOption = None,
) -> None:
    """Show which tensors of two checkpoints differ, and by how much.

    Example: qkedit diff ./Qwen2-VL-7B-Instruct ./edited
    """
    with command(context, architectures) as output:
        from rich.console import Group

        from qkedit.cli.progress import reading_bar
        from qkedit.report.fitting_table import FittingTable
        from qkedit.steering.diff import diff as compare

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


def _change(relative: float) -> str:
    return f"{relative:.2%}" if relative < 1000 else f"{relative:.2g} times"
