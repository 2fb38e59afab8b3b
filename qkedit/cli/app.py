"""The command line: run the called command, and exit with its exit code."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import time
from io import RawIOBase, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import typer

    from qkedit.cli import application
    from qkedit.cli.command_table import COMMANDS, called, command_name, origin
    from qkedit.cli.interruptions import EXIT_CODE, comes_of_interrupt
    from qkedit.cli.old_words import in_todays_words
    from qkedit.cli.output import AHEAD
    from qkedit.steering.processes.launch import launched
except KeyboardInterrupt:  # this import is a good part of the start
    sys.exit(130)

if TYPE_CHECKING:
    from qkedit.errors import QkeditError


# Seconds.
_TIME_TO_SPEAK = 2


def run() -> None:
    """Run the command line and exit with its exit code.

    Typer's own parsing errors have the same form as all others: one sentence, or the JSON envelope.
    """
    try:
        code = _share()
    except KeyboardInterrupt:  # before the command itself could handle it
        code = _interrupted()
    sys.exit(code)


def _share() -> int:
    """Run the whole command, or this process's share if several processes were launched together.

    The first process prints, and does the work that is not shared.
    """
    _prepare_streams()
    _take_old_words()
    launch = launched()
    if launch is None or launch.rank == 0:
        return _run()
    if called(sys.argv[1:]) != "steer":
        return 0
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    code = _run()
    if code not in (0, EXIT_CODE):
        # A launcher ends all processes as soon as one fails: the first one, which prints the error, must get to it.
        time.sleep(_TIME_TO_SPEAK)
    return code


def _run() -> int:
    # Imports leave no garbage, and at the end the process frees everything: with torch, the searches for garbage would
    # take a tenth of a second at the start and a third at the end.
    if called(sys.argv[1:]) != "serve":  # which runs for weeks, and whose garbage is other people's requests
        gc.set_threshold(20_000, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)
    return _exit_code()


def _interrupted() -> int:
    """Report an interrupted start; a second Ctrl-C must not cut the sentence off."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from qkedit.cli.output import Interrupted

    return _failure("qkedit", Interrupted("run again if you want to"))


def _take_old_words() -> None:
    """Replace old names in the command line, before anything reads it."""
    AHEAD.clear()  # of a command that did not begin
    sys.argv[1:], warning = in_todays_words(sys.argv[1:])
    if warning:
        AHEAD.append(warning)


def _prepare_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            # It was closed. This file takes its number, which otherwise the next opened file would get.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, TextIOWrapper):
            # A file name that the terminal's encoding cannot spell is not a reason to fail after the work is done.
            stream.reconfigure(errors="backslashreplace")
            if isinstance(stream.buffer, RawIOBase):
                # With PYTHONUNBUFFERED nobody looks at how much of a text the system took: a disk that is full after
                # a part of it would pass for one that took everything.
                buffered = open(stream.fileno(), "w", 1, stream.encoding, stream.errors, closefd=False)  # noqa: SIM115
                setattr(sys, name, buffered)


def _exit_code() -> int:
    try:
        code = application.run(sys.argv[1:])
    except typer.Abort as error:  # what older versions of Typer make of Ctrl-C
        raise KeyboardInterrupt from error
    except SystemExit as leaving:
        # How rich and Typer leave when the reader of the help (`| head`) has seen what it wanted.
        if isinstance(leaving.__context__, BrokenPipeError):
            return 0
        raise
    except OSError as error:  # while printing help or the version; commands handle their own
        if error.filename is not None:
            raise
        from qkedit.cli.output import Output

        return Output("qkedit").not_printed(error)
    except Exception as error:
        if comes_of_interrupt(error):
            raise KeyboardInterrupt from error
        # Typer exports no class for its usage errors; they are known by how they describe themselves.
        if not hasattr(error, "format_message"):
            raise
        return _usage_failure(error)
    if code == EXIT_CODE:
        from qkedit.cli.output import Interrupted

        if not Interrupted.was_said:
            raise KeyboardInterrupt
    return code


def _message(error: Any) -> str:
    """Return the message of one of Typer's errors, with the place where the value was given."""
    if getattr(error, "param_hint", "") is None:
        error.param_hint = origin(error.ctx, error.param) or None
    return str(error.format_message())


def _usage_failure(error: Any) -> int:
    from qkedit.errors import UsageError

    message = _message(error)
    context: typer.Context | None = getattr(error, "ctx", None)
    name = called(sys.argv[1:])  # some of Typer's errors do not say where they are from
    command = command_name(context) if context is not None else name if name in COMMANDS else ""
    remedy = f"see `{f'qkedit {command}'.strip()} --help`"
    if near := getattr(error, "possibilities", None):  # of an option
        message, remedy = error.message, f"did you mean {near[0]}"
    elif message.startswith("Missing argument '"):
        word = message.split("'")[1].rstrip(".")
        message = f"no {word.lower()} is named" if len(word) > 1 else f"{word} is not named"
    elif message.startswith("Missing option '"):
        message = message.split("'")[1].partition(" ")[0] + " is not given"
    elif ". Did you mean " in message:  # of a command
        message, _, near = message.rstrip("?").partition(". Did you mean ")
        remedy = f"did you mean {near.split(', ')[0]}"
    elif message.endswith("?"):  # of a setting
        message, _, near = message.rstrip("?").rpartition("; did you mean ")
        remedy = f"did you mean {near}"
    error = UsageError(message.rstrip("."), remedy=remedy)
    return _failure(command or "qkedit", error)


def _failure(command: str, error: QkeditError) -> int:
    from qkedit.cli.output import Output

    try:
        Output(command, as_json=_json_is_wanted()).failure(error)
    except typer.Exit as leaving:
        return leaving.exit_code


def _json_is_wanted() -> bool:
    """Return whether --json is set anywhere; the parser may have failed before it reached that option."""
    from qkedit.cli.settings import YES, wants_json

    words = sys.argv[1:]
    if "--json" in words:
        return True
    if in_environment := os.environ.get("QKEDIT_JSON"):
        return in_environment.strip().lower() in YES
    file = os.environ.get("QKEDIT_CONFIG", "")
    for word, following in zip(words, [*words[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        if option == "--config":
            file = value if equals else following
    return bool(file) and wants_json(Path(file), called(words) or "")
