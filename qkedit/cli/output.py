"""The single output of a command.

Results go to standard output, everything else to standard error. With `--json` standard output holds exactly one
document, on success and on failure alike:

    {"schema": 1, "command": "steer", "status": "done", "warnings": [], …the command's own fields}
    {"schema": 1, "command": "steer", "status": "failed", "warnings": [],
     "error": {"what": "…", "where": "…", "remedy": "…"}}
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TextIO

import typer

from qkedit.cli.command_table import as_given, command_name, global_flag
from qkedit.cli.interruptions import EXIT_CODE, comes_of_interrupt, interruptible
from qkedit.errors import QkeditError, UsageError, VerificationError, memory_that_ran_out

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1
_LONG = 100
_FEW_WORDS = 20  # characters
_COMPACT = json.JSONEncoder(allow_nan=False)
# Variables by which rich takes a stream for a terminal, or one that understands styles.
_STYLED = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
# Warnings about settings, which are read before the command that will print them begins.
AHEAD: list[str] = []


class Output:
    """The output of one run of a command: for people, quiet or JSON.

    Args:
        command: the name of the command, for the envelope.
        as_json: print one JSON document instead of text.
        quiet: no progress, no warnings and no closing summary.

    Attributes:
        after_interruption: the advice after an interruption; a command that keeps results sets its own.
    """

    def __init__(self, command: str, *, as_json: bool = False, quiet: bool = False) -> None:
        self.command = command
        self.as_json = as_json
        self.quiet = quiet
        self.warnings: list[str] = []
        self.after_interruption = "run again if you want to; outputs appear whole or not at all"

    @property
    def shows_progress(self) -> bool:
        """True if standard error is a terminal and the output is neither JSON nor quiet."""
        return not (self.as_json or self.quiet) and sys.stderr.isatty()

    def warn(self, sentence: str) -> None:
        """Print a warning to read before trusting the result; it is also in the JSON envelope."""
        self.warnings.append(sentence)
        if not (self.as_json or self.quiet):
            self._say("warning", sentence)

    def progress(self, line: str) -> None:
        """Print the progress of a long run to standard error, unless --quiet or --json is set."""
        if not (self.as_json or self.quiet):
            self._print(line, stderr=True)

    def result(self, fields: dict[str, Any], human: RenderableType, *, summary: bool = False) -> None:
        """Print the result: `fields` as JSON, else `human`; a `summary` of work done is dropped by --quiet."""
        self._finish("done", fields, human if not (summary and self.quiet) else None)

    def mismatch(self, fields: dict[str, Any], human: RenderableType, error: QkeditError) -> NoReturn:
        """Print a result with a mismatch, and the sentence about it, and exit with its exit code."""
        self._finish("failed", fields | {"error": _described(error)}, human)
        if not self.as_json:
            self._say("error", error)
        raise typer.Exit(error.exit_code)

    def failure(self, error: QkeditError) -> NoReturn:
        """Print one sentence and exit with the error's exit code."""
        Interrupted.was_said |= isinstance(error, Interrupted)
        if self.as_json:
            self._finish("failed", {"error": _described(error)}, None)
        else:
            self._say("error", error)
        raise typer.Exit(error.exit_code)

    def not_printed(self, error: OSError) -> int:
        """Report that standard output could not be written, for example on a full disk; return the exit code."""
        _discard(sys.stdout)
        sentence = QkeditError(
            f"the result could not be printed ({error.strerror})",
            where="standard output",
            remedy="send it elsewhere (what the command wrote to files is in place)",
        )
        self._say("error", sentence)
        return sentence.exit_code

    def _finish(self, status: str, fields: dict[str, Any], human: RenderableType | None) -> None:
        if self.as_json:
            envelope = {"schema": SCHEMA, "command": self.command, "status": status, "warnings": self.warnings}
            with self._as_far_as_it_is_read(sys.stdout):
                sys.stdout.write(_document(envelope | fields) + "\n")
        elif human is not None:
            self._print(human)

    def _say(self, kind: str, sentence: object) -> None:
        from qkedit.report.terminal_text import on_one_line

        styles = {"warning": "yellow", "error": "red"}
        self._print(f"{kind}: {on_one_line(str(sentence))}", stderr=True, style=styles[kind])

    def _print(self, text: RenderableType, *, stderr: bool = False, style: str | None = None) -> None:
        from qkedit.report.terminal_text import Visible, visible

        stream = sys.stderr if stderr else sys.stdout
        if isinstance(text, str) and "\t" not in text and not (stream.isatty() or any(map(os.environ.get, _STYLED))):
            # What rich would write, without its import, which is a twentieth of a short command's time.
            with self._as_far_as_it_is_read(stream):
                stream.write(visible(text) + "\n")
            return
        from rich.console import Console

        # A pipe has no width; wrapping at 80 would break the lines that a script greps for.
        width, wide = (None, False) if stream.isatty() else (4096, True)
        # Names of tensors and files are not markup, whatever brackets they hold.
        console = Console(file=stream, width=width, soft_wrap=wide, markup=False, highlight=False, emoji=False)
        with self._as_far_as_it_is_read(stream):
            # rich itself would end the process at a closed pipe.
            with console.capture() as captured:
                console.print(Visible(text), style=style)
            stream.write(captured.get())

    @contextmanager
    def _as_far_as_it_is_read(self, stream: TextIO) -> Iterator[None]:
        try:
            yield
            stream.flush()
        except BrokenPipeError:
            # A reader that closes the pipe (`| head`) has seen enough; the command itself has not failed.
            _discard(stream)
        except OSError as error:
            if stream is sys.stdout:
                raise typer.Exit(self.not_printed(error)) from None
            _discard(stream)  # there is no stream left to report it


def _discard(stream: TextIO) -> None:
    """Discard the buffer of a stream: Python flushes it once more at exit, which must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def aligned(facts: Iterable[tuple[str, str]]) -> str:
    """Return one line per fact, with names and values in two columns; long values wrap in their column."""
    from qkedit.report.terminal_text import on_one_line

    rows = [(name, on_one_line(value)) for name, value in facts]
    start = max(len(name) for name, _ in rows) + 2
    room = shutil.get_terminal_size().columns - start if sys.stdout.isatty() else 0
    return "\n".join(f"{name:<{start}}{_wrapped(value, start, room)}" for name, value in rows)


def _wrapped(value: str, start: int, room: int) -> str:
    """Wrap a value within its own column; leave it whole if there is space for only a few words."""
    if room < _FEW_WORDS:
        return value
    lines = textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * start}".join(lines) or value


def _document(value: Any, margin: str = "\n") -> str:
    """Return indented JSON, with long lists one entry per line: full indentation of them takes seconds."""
    deeper = margin + "  "
    if isinstance(value, dict) and value:
        entries = [f"{json.dumps(str(key))}: {_document(entry, deeper)}" for key, entry in value.items()]
        return f"{{{deeper}{f',{deeper}'.join(entries)}{margin}}}"
    if isinstance(value, list | tuple) and value:
        write = _COMPACT.encode if len(value) > _LONG else lambda entry: _document(entry, deeper)
        return f"[{deeper}{f',{deeper}'.join(map(write, value))}{margin}]"
    return _COMPACT.encode(value)


def _described(error: QkeditError) -> dict[str, Any]:
    described: dict[str, Any] = {"what": error.what, "where": error.where, "remedy": error.remedy}
    if isinstance(error, VerificationError):
        described["mismatches"] = list(error.mismatches)
    return described


@contextmanager
def command(context: typer.Context, architectures: Sequence[Path] | None = None) -> Iterator[Output]:
    """Run a command's body with the global flags: every error it raises becomes one sentence and an exit code.

    SIGTERM and SIGHUP unwind like Ctrl-C, so that a cancelled pipeline leaves no staging directory behind. With
    `--debug` the traceback is printed as well. The records in the directories of `architectures` are used.
    """
    as_json, quiet, debug = (bool(global_flag(context, name)) for name in ("json", "quiet", "debug"))
    output = Output(command_name(context), as_json=as_json, quiet=quiet)
    if not output.shows_progress:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the hub's library is imported
    logs = _Warnings(output)
    logging.getLogger("qkedit").addHandler(logs)
    with interruptible():
        try:
            while AHEAD:
                output.warn(AHEAD.pop(0))
            _check_working_directory()
            with _known_records(architectures):
                yield output
        except QkeditError as error:
            if debug:
                _print_traceback()
            output.failure(as_given(context, error))
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            output.failure(Interrupted(output.after_interruption))
        except Exception as error:
            if debug:
                _print_traceback()
            if comes_of_interrupt(error):
                output.failure(Interrupted(output.after_interruption))
            if whose := memory_that_ran_out(error):
                output.failure(QkeditError(f"{whose} ran out", remedy="free some of it, or run where there is more"))
            # An OSError where the system's loader fails: the libraries of torch are not mapped where memory is short.
            if isinstance(error, ImportError) or "shared object" in str(error):
                output.failure(
                    QkeditError(
                        f"a library could not be loaded ({error})",
                        remedy="free memory if it is short, else install qkedit and what it needs again",
                    )
                )
            if isinstance(error, OSError):
                from qkedit.checkpoint.io.file_errors import refusal

                output.failure(refusal(error, "go on", error.filename or ""))
            output.failure(
                QkeditError(
                    f"unexpected {type(error).__name__}: {error}",
                    remedy="run again with --debug and report what it prints",
                )
            )
        finally:
            logging.getLogger("qkedit").removeHandler(logs)


def _known_records(directories: Sequence[Path] | None) -> AbstractContextManager[None]:
    if directories is None:
        return nullcontext()
    from qkedit.checkpoint.architecture.library import using_architectures

    return using_architectures(directories)


def _check_working_directory() -> None:
    """Refuse to run in a removed working directory: libraries that torch loads would end the process."""
    try:
        os.getcwd()
    except OSError:
        raise UsageError(
            "the working directory does not exist any more", remedy="change to one that does (cd), and run again"
        ) from None


class _Warnings(logging.Handler):
    """Turns warnings logged by library code into warnings of the command."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.warn(record.getMessage())


# The advice of every command that keeps its results; see `Output.after_interruption`.
GO_ON = "run the same command to go on"


class Interrupted(QkeditError):
    """The user pressed Ctrl-C, or the system requested the end of the process."""

    exit_code = EXIT_CODE
    # Whether one was printed in this process. For an interrupt outside the command's own handling, Typer exits with
    # the same code and prints nothing.
    was_said: ClassVar[bool] = False

    def __init__(self, remedy: str) -> None:
        super().__init__("interrupted", remedy=remedy)


def _print_traceback() -> None:
    import traceback

    from qkedit.report.terminal_text import visible

    sys.stderr.write(visible(traceback.format_exc()))
