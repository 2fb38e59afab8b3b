"""`qkedit verify`: check an output against its manifest and its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli.flags.model import ArchitecturesOption, BaseOption, RevisionOption
from qkedit.cli.output import command


def verify(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="A directory that qkedit wrote.")],
    base: BaseOption = None,
    revision: RevisionOption = None,
    architectures: ArchitecturesOption = None,
) -> None:
    """Check an output against its manifest and its base.

    A base on the hub is found automatically, a local one is given with --base. The exit code is 3 on a mismatch.

    Example: qkedit verify ./edited --base ./Qwen2-VL-7B-Instruct
    """
    with command(context, architectures) as output:
        from qkedit.cli.progress import reading_bar
        from qkedit.report.terminal_text import lines
        from qkedit.steering.verify import mismatched
        from qkedit.steering.verify import verify as check

        with reading_bar(output) as on_bytes:
            result = check(directory, base=base, revision=revision, on_bytes=on_bytes)
        if result.mismatches:
            error = mismatched(result, directory, result.remedy)
            output.mismatch(result.as_dict(), lines(*result.mismatches), error)
        if result.compared_with_base is None:
            output.warn("no base was given: tensors and files that were not edited have not been compared")
        output.result(result.as_dict(), lines(f"{result.sentence()}."), summary=True)
