"""`qkedit merge`: make one delta of several edits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli import options
from qkedit.cli.output import command


def merge(
    context: typer.Context,
    edits: Annotated[
        list[Path], typer.Argument(metavar="EDIT...", help="Directories that qkedit wrote: deltas or full outputs.")
    ],
    base: options.BaseOption = None,
    revision: options.RevisionOption = None,
    out: options.OutOption = None,
    overwrite: options.OverwriteOption = False,
    force: options.ForceOption = False,
    fsync: options.FsyncOption = True,
    verify: options.VerifyOption = False,
    architectures: options.ArchitecturesOption = None,
) -> None:
    """Make one delta of several edits of one base.

    Where edits change the same numbers, their changes are added up; `apply` of
    the result is `apply` of all of them.

    Example: qkedit merge ./delta-a ./delta-b --base ./Qwen2-VL-7B-Instruct --out ./both
    """
    with command(context, architectures) as output:
        from qkedit.cli.commands.edit.steer import print_report
        from qkedit.cli.progress import progress_bar
        from qkedit.steering.apply import merge_edits
        from qkedit.steering.options import OutputOptions

        directory = options.required_out(out)
        target = OutputOptions(directory, "delta", overwrite=overwrite, fsync=fsync, verify=verify, force=force)
        with progress_bar(output) as progress:
            report = merge_edits(edits, output=target, base=base, revision=revision, progress=progress)
        print_report(output, report, ("merged", ", ".join(map(str, edits))))
