"""The command line: every command by name, imported when it is called for."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Collection
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated

import typer

import qkedit

PANELS = {
    "Edit a checkpoint": ("steer", "inspect", "verify", "diff", "apply", "models"),
    "Run it, with plug-ins": ("generate", "serve", "attach", "detach", "plugins", "coherence"),
    "Measure what an edit did": ("eval", "score", "compare", "gate", "drift"),
    "Laboratory": ("demo", "sweep"),
}
COMMANDS = tuple(name for names in PANELS.values() for name in names)


def application(commands: Collection[str] = COMMANDS) -> typer.Typer:
    """Return the command line with these commands alone: to import and describe all of them takes 0.1 s."""
    app = typer.Typer(
        name="qkedit",
        help="Edit the query-key products of vision-language checkpoints on disk.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_main)
    for panel, names in PANELS.items():
        for name in names:
            if name in commands:
                app.command(
                    name,
                    rich_help_panel=panel,
                    # attach takes the options of the plug-in that is named besides its own.
                    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
                    if name == "attach"
                    else None,
                )(_function(name))
    return app


def _function(command: str) -> Callable[..., None]:
    # A function called `eval` would hide Python's own.
    return getattr(import_module(f"qkedit.cli.{command}"), "evaluate" if command == "eval" else command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qkedit {qkedit.__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line and leave with its exit code.

    What Typer itself cannot parse is said as qkedit says everything else: one sentence, or the JSON envelope.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A file name that the terminal's encoding cannot spell is no reason to fail after the work is done.
            stream.reconfigure(errors="backslashreplace")
    # Imports leave no garbage, and what stands at the end need not be searched for any: with torch, that takes a tenth
    # of a second at the start and a third at the end.
    gc.set_threshold(20_000, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)
    called = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    app = application((called,) if called in COMMANDS else COMMANDS)
    try:
        code = app(prog_name="qkedit", standalone_mode=False)
    except typer.Abort:
        code = 130
    except Exception as error:
        # Typer exports no class for its usage errors; they are known by how they describe themselves.
        if not hasattr(error, "format_message"):
            raise
        # A bare `qkedit` has printed its help by then and has no message left.
        message = error.format_message()
        code = _usage_failure(message, getattr(error, "ctx", None)) if message else 2
    sys.exit(code or 0)


def _usage_failure(message: str, context: typer.Context | None) -> int:
    from qkedit.cli.output import Output
    from qkedit.errors import UsageError

    name = context.info_name if context is not None and context.info_name else "qkedit"
    # The parser gave up before it came to the option that says how to answer.
    in_environment = os.environ.get("QKEDIT_JSON", "").strip().lower() in ("1", "true", "t", "yes", "y", "on")
    output = Output(name, as_json=in_environment or "--json" in sys.argv[1:])
    try:
        help_command = f"{context.command_path} --help" if context is not None else "qkedit --help"
        output.failure(UsageError(message.rstrip("."), remedy=f"see `{help_command}`"))
    except typer.Exit as leaving:
        return leaving.exit_code
