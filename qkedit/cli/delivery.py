"""Print a result and write its files, without losing the result if a file cannot be written."""

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
    check: QkeditError | None = None,
) -> None:
    """Print a result, then write its files and list them.

    The text for people comes first. The JSON document lists the written files, so it comes last; if a file fails, the
    document reports the failure and still holds the result.

    Args:
        output: the output to print to.
        fields: the result for `--json`.
        human: the result for people.
        files: the files, each with its writer.
        done: files that are already written; None for a file that was not requested.
        check: the failure of a check that the result reports; everything is printed and written all the same.

    Raises:
        QkeditError: a file cannot be written.
        Exit: a check failed.
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
        if check is not None:
            output.mismatch(fields | {"written": written}, human, check)
        output.result(fields | {"written": written}, human)
        return
    from qkedit.report.terminal_text import lines

    if written:
        output.result({}, lines("", f"Written: {', '.join(written)}"))
    if check is not None:
        output.mismatch({}, lines(), check)


def plot_file(plot: Path | None, draw: Callable[[str], bytes]) -> dict[Path, Callable[[], object]]:
    """Return the plot as a file for `deliver`; no file if none is requested.

    Args:
        plot: the path of the plot, checked by `check_plot`; None for no plot.
        draw: a function that returns the plot in a format, such as `png`.
    """
    if plot is None:
        return {}

    def write() -> None:
        from qkedit.report.files import write_file
        from qkedit.report.plots import plot_format

        write_file(plot, draw(plot_format(plot)))

    return {plot: write}
