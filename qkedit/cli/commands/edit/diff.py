"""`qkedit diff`: how and by how much two checkpoints or two edits differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qkedit.cli import completion
from qkedit.cli.delivery import deliver
from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.model import ArchitecturesOption, RevisionOption
from qkedit.cli.output import Output, command
from qkedit.cli.settings import on_command_line, refuse_without_effect
from qkedit.errors import UsageError


def _side(name: str, text: str) -> Any:
    """Return the argument for one of the two sides."""
    return typer.Argument(metavar=name, help=text, autocompletion=completion.models)


def diff(
    context: typer.Context,
    first: Annotated[str, _side("A", "A directory, a hub id, an alias or 'demo'; or an edit: a delta or an adapter.")],
    second: Annotated[str, _side("B", "The other checkpoint or edit.")],
    base: Annotated[
        str | None,
        flag("--base", help="The model that A and B were made from; for edits, one on the hub is found by itself."),
    ] = None,
    revision: RevisionOption = None,
    detail: Annotated[bool, flag("--detail", help="Print one row per head instead of one per layer.")] = False,
    csv: Annotated[Path | None, flag("--csv", help="Write one line per head to this file.")] = None,
    extract: Annotated[
        Path | None,
        flag("--extract", help="Write the difference as a delta of A to this directory, for `qkedit apply`."),
    ] = None,
    only_queries: Annotated[
        bool, flag("--only-queries", help="With --extract: leave out differences other than in query projections.")
    ] = False,
    overwrite: Annotated[bool, flag("--overwrite", help="With --extract: replace an earlier output.")] = False,
    architectures: ArchitecturesOption = None,
) -> None:
    """Show how two checkpoints or edits differ: tensors, and the query-key product of each head.

    Edits are compared by way of their base. With a base, the directions that A and
    B change are compared as well. With --extract, the difference becomes an edit:
    also one that somebody else made.

    Example: qkedit diff ./delta-a ./delta-b --base ./Qwen2-VL-7B-Instruct --detail
    """
    with command(context, architectures) as output:
        from qkedit.cli.progress import reading_bar
        from qkedit.report.differences import DifferenceTables, difference_csv
        from qkedit.report.files import check_target, write_file
        from qkedit.steering.differences.difference import difference_between
        from qkedit.steering.differences.sides import is_edit

        if extract is not None:
            refuse_without_effect(context, "with --extract", "base", "revision", "detail", "csv")
            _extract(output, first, second, extract, only_queries=only_queries, overwrite=overwrite)
            return
        refuse_without_effect(context, "without --extract", "only_queries", "overwrite")
        if csv is not None:
            check_target(csv, (".csv",), "--csv")
        if not (is_edit(first) or is_edit(second) or on_command_line(context, "base")):
            base = None  # a base that is set for verify and apply does not request a comparison
        if base is None and on_command_line(context, "revision") and not is_edit(first) and not is_edit(second):
            raise UsageError("is that of a base", where="--revision", remedy="name the --base, or leave it out")
        with reading_bar(output) as on_bytes:
            found = difference_between(first, second, base=base, revision=revision, on_bytes=on_bytes)
        writing = {} if csv is None else {csv: lambda: write_file(csv, difference_csv(found).encode())}
        deliver(output, found.as_dict(), DifferenceTables(found, every_head=detail), writing)


def _extract(output: Output, base: str, edited: str, out: Path, *, only_queries: bool, overwrite: bool) -> None:
    from qkedit.cli.commands.edit.steer import print_report
    from qkedit.cli.progress import progress_bar
    from qkedit.steering.extraction import extract
    from qkedit.steering.steer_options import OutputOptions

    target = OutputOptions(out, "delta", overwrite=overwrite)
    with progress_bar(output) as progress:
        report = extract(base, edited, output=target, only_queries=only_queries, progress=progress)
    print_report(output, report, ("extracted", f"{edited} minus {base}"))
