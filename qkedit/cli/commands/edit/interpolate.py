"""`qkedit interpolate`: write an edit with another strength."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.model import BaseOption, RevisionOption
from qkedit.cli.flags.output import FullOutputFlags, OutOption, required_out
from qkedit.cli.output import command
from qkedit.cli.settings import refuse_without_effect


def interpolate(
    context: typer.Context,
    *,
    edit: Annotated[Path, typer.Argument(help="A directory that qkedit wrote: a delta or a full output.")],
    strength: Annotated[
        float, flag("--strength", help="Factor of the change, above 0 and at most 2; 1 is the edit as it is.")
    ],
    base: BaseOption = None,
    revision: RevisionOption = None,
    out: OutOption = None,
    layout: Annotated[
        str, flag("--layout", help="What to write: the full checkpoint, or a delta (only the edited tensors).")
    ] = "full",
    writing: FullOutputFlags,
) -> None:
    """Write an edit with another strength: W + strength (W' - W), rounded once.

    Strength 1 gives the same bytes as `apply`.

    Example: qkedit interpolate ./delta --strength 0.5 --base ./Qwen2-VL-7B-Instruct --out ./half
    """
    with command(context, writing.architectures) as output:
        from qkedit.cli.commands.edit.steer import print_report
        from qkedit.cli.progress import progress_bar
        from qkedit.steering.apply import interpolate_edit

        if layout != "full":
            refuse_without_effect(context, f"with --layout {layout}", "link")
        target = writing.options(required_out(out), layout)
        with progress_bar(output) as progress:
            report = interpolate_edit(edit, strength, output=target, base=base, revision=revision, progress=progress)
        print_report(output, report, ("interpolated", f"{edit} in strength {strength:g}"))
