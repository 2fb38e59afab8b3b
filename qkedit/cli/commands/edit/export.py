"""`qkedit export`: write an edit as an adapter."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli import options
from qkedit.cli.output import command


class Format(StrEnum):
    """What an edit can be exported as."""

    LORA = "lora"


def export(
    context: typer.Context,
    edit: Annotated[Path, typer.Argument(help="A full directory or a delta that qkedit wrote.")],
    base: options.BaseOption = None,
    revision: options.RevisionOption = None,
    out: options.OutOption = None,
    form: Annotated[Format, options.flag("--format", help="What to write: lora, an adapter for PEFT.")] = Format.LORA,
    rank: options.RankOption = None,
    overwrite: options.OverwriteOption = False,
    force: options.ForceOption = False,
    fsync: options.FsyncOption = True,
    verify: options.VerifyOption = False,
    architectures: options.ArchitecturesOption = None,
) -> None:
    """Write an edit as an adapter for PEFT and vLLM.

    The factors are found in the difference to the base, which was rounded; the report says how much of it they lack.
    `qkedit steer --layout lora` writes the edit before any rounding.

    Example: qkedit export ./edited --format lora --out ./adapter
    """
    with command(context, architectures) as output:
        from qkedit.cli.commands.edit.steer import print_report
        from qkedit.cli.progress import progress_bar
        from qkedit.steering.export import export as write_adapter
        from qkedit.steering.options import OutputOptions

        target = OutputOptions(
            options.required_out(out),
            form.value,
            overwrite=overwrite,
            fsync=fsync,
            verify=verify,
            force=force,
            rank=rank,
        )
        with progress_bar(output) as progress:
            report = write_adapter(edit, output=target, base=base, revision=revision, progress=progress)
        print_report(output, report, ("exported", f"{edit} as an adapter"))
