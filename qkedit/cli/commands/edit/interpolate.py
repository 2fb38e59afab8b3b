"""`qkedit interpolate`: write an edit in another strength."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli import completion, options
from qkedit.cli.output import command


def interpolate(
    context: typer.Context,
    edit: Annotated[Path, typer.Argument(help="A directory that qkedit wrote: a delta or a full output.")],
    strength: Annotated[
        float,
        options.flag("--strength", help="Factor of the change, above 0 and at most 2; 1 is the edit as it is."),
    ],
    base: options.BaseOption = None,
    revision: options.RevisionOption = None,
    out: options.OutOption = None,
    layout: Annotated[
        str,
        options.flag(
            "--layout",
            help="What to write: the full checkpoint, or a delta (only the edited tensors).",
            autocompletion=completion.layouts,
        ),
    ] = "full",
    link: options.LinkOption = "auto",
    overwrite: options.OverwriteOption = False,
    force: options.ForceOption = False,
    follow_links: options.FollowLinksOption = False,
    fsync: options.FsyncOption = True,
    verify: options.VerifyOption = False,
    architectures: options.ArchitecturesOption = None,
) -> None:
    """Write an edit in another strength: W + strength (W' - W), rounded once.

    Strength 1 gives what `apply` gives, byte for byte.

    Example: qkedit interpolate ./delta --strength 0.5 --base ./Qwen2-VL-7B-Instruct --out ./half
    """
    with command(context, architectures) as output:
        from qkedit.cli.commands.edit.steer import print_report
        from qkedit.cli.progress import progress_bar
        from qkedit.steering.apply import interpolate_edit
        from qkedit.steering.options import OutputOptions

        target = OutputOptions(
            options.required_out(out),
            layout,  # type: ignore[arg-type]  # checks the name
            link,
            overwrite,
            fsync,
            verify,
            force,
            follow_links,
        )
        with progress_bar(output) as progress:
            report = interpolate_edit(edit, strength, output=target, base=base, revision=revision, progress=progress)
        print_report(output, report, ("interpolated", f"{edit} in strength {strength:g}"))
