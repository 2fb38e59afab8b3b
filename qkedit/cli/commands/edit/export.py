"""`qkedit export`: write an edit as an adapter."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.model import BaseOption, RevisionOption
from qkedit.cli.flags.output import OutOption, OutputFlags, RankOption, required_out
from qkedit.cli.output import command


class Format(StrEnum):
    """The formats to which an edit can be exported."""

    LORA = "lora"


def export(
    context: typer.Context,
    *,
    edit: Annotated[Path, typer.Argument(help="A full directory or a delta that qkedit wrote.")],
    base: BaseOption = None,
    revision: RevisionOption = None,
    out: OutOption = None,
    form: Annotated[Format, flag("--format", help="What to write: lora, an adapter for PEFT.")] = Format.LORA,
    rank: RankOption = None,
    writing: OutputFlags,
) -> None:
    """Write an edit as an adapter for PEFT and vLLM.

    The factors are found in the difference to the base, which was rounded; the report says how much of it they lack.
    `qkedit steer --layout lora` writes the edit before any rounding.

    Example: qkedit export ./edited --format lora --out ./adapter
    """
    with command(context, writing.architectures) as output:
        from qkedit.cli.commands.edit.steer import print_report
        from qkedit.cli.progress import progress_bar
        from qkedit.steering.export import export as write_adapter

        target = writing.options(required_out(out), form.value, rank=rank)
        with progress_bar(output) as progress:
            report = write_adapter(edit, output=target, base=base, revision=revision, progress=progress)
        print_report(output, report, ("exported", f"{edit} as an adapter"))
