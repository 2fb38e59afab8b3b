"""Print a result and write the files that go with it, so that a file that cannot be written loses no result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qkedit.cli.output import Output


def deliver(
    output: Output,
    fields: dict[str, Any],
    human: RenderableType,
    files: Mapping[Path, Callable[[], object]],
    done: Sequence[Path | None] = (),
) -> None:
    """Print a result, then write its files and say which were written.

    People see the result first. A JSON document says what was written, so it comes last; when a file fails, it is a
    failed one that holds the result all the same.

    Args:
        output: where it is said.
        fields: the result for `--json`.
        human: the result for people.
        files: each with what writes it.
        done: files that are written already; None is one that was not asked for.

    Raises:
        QkeditError: a file cannot be written.
    """
    written = [str(file) for file in done if file is not None]
    if not output.as_json:
        output.result(fields, human)
    for file, write in files.items():
        try:
            write()
        except QkeditError as error:
            if output.as_json:
                output.mismatch(fields | {"written": written}, human, error)
            raise
        written.append(str(file))
    if output.as_json:
        output.result(fields | {"written": written}, human)
    elif written:
        from qkedit.report.terminal_text import lines

        output.result({}, lines("", f"Written: {', '.join(written)}"))
