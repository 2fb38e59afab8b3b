"""`qkedit merge`: merge several edits into one delta."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli.flags.model import BaseOption, RevisionOption
from qkedit.cli.flags.output import OutOption, OutputFlags, required_out
from qkedit.cli.output import command


def merge(
    context: typer.Context,
    *,
    edits: Annotated[
        list[Path], typer.Argument(metavar="EDIT...", help="Directories that qkedit wrote: deltas or full outputs.")
    ],
    base: BaseOption = None,
    revision: RevisionOption = None,
    out: OutOption = None,
    writing: OutputFlags,
) -> None:
    """Merge several edits of one base into one delta.

    Where edits change the same numbers, their changes are added up; `apply` of
    the result is `apply` of all of them.

    Example: qkedit merge ./delta-a ./delta-b --base ./Qwen2-VL-7B-Instruct --out ./both
    """
    with command(context, writing.architectures) as output:
        from qkedit.cli.commands.edit.steer import print_report
        from qkedit.cli.progress import progress_bar
        from qkedit.steering.apply import merge_edits

        target = writing.options(required_out(out), "delta")
        with progress_bar(output) as progress:
            report = merge_edits(edits, output=target, base=base, revision=revision, progress=progress)
        print_report(output, report, ("merged", ", ".join(map(str, edits))))
