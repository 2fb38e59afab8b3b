"""`qkedit revert`: undo the last edit of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.model import BaseOption, RevisionOption
from qkedit.cli.flags.output import FsyncOption, OverwriteOption
from qkedit.cli.output import aligned, command
from qkedit.errors import counted


def revert(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="A full checkpoint that qkedit wrote.")],
    base: BaseOption = None,
    revision: RevisionOption = None,
    out: Annotated[
        Path | None, flag("--out", help="Write the restored model here; by default it takes the directory's place.")
    ] = None,
    overwrite: OverwriteOption = False,
    force: Annotated[
        bool, flag("--force", help="Continue although files were changed since; replace --out, whatever it holds.")
    ] = False,
    fsync: FsyncOption = True,
) -> None:
    """Undo the last edit: restore the model from before it, byte for byte.

    The original bytes come from --base, else from those that --keep-original kept, else from the hub, where only the
    edited tensors are fetched. In place, files that qkedit did not write stay.

    Example: qkedit revert ./edited --base ./Qwen2-VL-7B-Instruct
    """
    with command(context) as output:
        from qkedit.cli.commands.edit.steer import size
        from qkedit.cli.progress import progress_bar
        from qkedit.steering.undo.revert import revert as restore

        with progress_bar(output) as progress:
            report = restore(
                directory,
                base=base,
                revision=revision,
                out=out,
                overwrite=overwrite,
                force=force,
                fsync=fsync,
                progress=progress,
            )
        if report.differing:
            output.warn(f"files differ from the base's and were left as they are: {', '.join(report.differing)}")
        facts = [
            ("restored", f"{report.base}, as it was before the edit"),
            ("tensors", f"{report.tensors} ({size(report.bytes_restored)}), from {report.bytes_from}"),
        ]
        if report.files_compared and not report.differing:
            facts.append(("compared", f"{counted(report.files_compared, 'file')} equal to {report.bytes_from}"))
        if report.edits_left:
            facts.append(("edits left", f"{report.edits_left}: the last edit alone was undone"))
        facts.append(("written", str(report.out)))
        output.result(report.as_dict(), aligned(facts), summary=True)
