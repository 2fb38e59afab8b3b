"""`qkedit apply`: make the full checkpoint from edits and their base: deltas and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli.flags.model import BaseOption, RevisionOption
from qkedit.cli.flags.output import FullOutputFlags, KeepOriginalOption, KeepPluginsOption, OutOption, required_out
from qkedit.cli.output import command
from qkedit.errors import UsageError


def apply(
    context: typer.Context,
    *,
    edits: Annotated[
        list[Path],
        typer.Argument(
            metavar="EDIT...",
            help="A directory written with `steer --layout delta` or `lora`; several of one base are combined.",
        ),
    ],
    base: BaseOption = None,
    revision: RevisionOption = None,
    out: OutOption = None,
    keep_original: KeepOriginalOption = False,
    keep_plugins: KeepPluginsOption = False,
    writing: FullOutputFlags,
) -> None:
    """Make the full checkpoint from a delta or an adapter and its base.

    From a delta the result is byte-equal to steering the base directly. An adapter is added to the base and rounded.
    Where several edits change the same numbers, their changes are added up.

    Example: qkedit apply ./delta --base qwen2-vl --out ./edited
    """
    with command(context, writing.architectures) as output:
        from qkedit.cli.commands.edit.steer import print_report
        from qkedit.cli.progress import progress_bar
        from qkedit.steering.apply import apply_edits

        if base is None:
            raise UsageError("no base is given", where="--base", remedy="name the base model")
        target = writing.options(required_out(out), "full", keep_original=keep_original)
        with progress_bar(output) as progress:
            report = apply_edits(
                edits, base=base, output=target, revision=revision, keep_plugins=keep_plugins, progress=progress
            )
        print_report(output, report, ("applied", f"{', '.join(map(str, edits))} to {base}"))
