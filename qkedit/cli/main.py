"""The command line: every command by name, imported when it is called for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated

import typer

import qkedit
from qkedit.cli.apply import apply
from qkedit.cli.attach import attach
from qkedit.cli.coherence import coherence
from qkedit.cli.compare import compare
from qkedit.cli.demo import demo
from qkedit.cli.detach import detach
from qkedit.cli.diff import diff
from qkedit.cli.drift import drift
from qkedit.cli.eval import evaluate
from qkedit.cli.gate import gate
from qkedit.cli.generate import generate
from qkedit.cli.inspect import inspect
from qkedit.cli.models import models
from qkedit.cli.plugins import plugins
from qkedit.cli.score import score
from qkedit.cli.serve import serve
from qkedit.cli.steer import steer
from qkedit.cli.sweep import sweep
from qkedit.cli.verify import verify

app = typer.Typer(
    name="qkedit",
    help="Edit the query-key products of vision-language checkpoints on disk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qkedit {qkedit.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Edit a checkpoint": (steer, inspect, verify, diff, apply, models),
    "Run it, with plug-ins": (generate, serve, attach, detach, plugins, coherence),
    "Measure what an edit did": (evaluate, score, compare, gate, drift),
    "Laboratory": (demo, sweep),
}
for panel, functions in _PANELS.items():
    for function in functions:
        app.command(
            # A function called `eval` would hide Python's own.
            "eval" if function is evaluate else None,
            rich_help_panel=panel,
            # attach takes the options of the plug-in that is named besides its own.
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
            if function is attach
            else None,
        )(function)


def run() -> None:
    """Run the command line and leave with its exit code.

    What Typer itself cannot parse is said as qkedit says everything else: one sentence, or the JSON envelope.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A file name that the terminal's encoding cannot spell is no reason to fail after the work is done.
            stream.reconfigure(errors="backslashreplace")
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
