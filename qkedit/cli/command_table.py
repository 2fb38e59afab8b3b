"""Every command by name and panel, imported when it is called for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import import_module
from typing import Annotated

import typer

from qkedit.version import __version__

PANELS = {
    "Edit a checkpoint": ("steer", "inspect", "verify", "diff", "apply", "models"),
    "Run it, with plug-ins": ("generate", "serve", "attach", "detach", "plugins", "coherence"),
    "Measure what an edit did": ("eval", "score", "compare", "gate", "drift"),
    "Laboratory": ("demo", "sweep"),
}
COMMANDS = tuple(name for names in PANELS.values() for name in names)
_FOLDERS = dict(zip(PANELS, ("edit", "run", "measure", "laboratory"), strict=True))


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
    folder = next(_FOLDERS[panel] for panel, names in PANELS.items() if command in names)
    module = import_module(f"qkedit.cli.commands.{folder}.{command}")
    return getattr(module, "evaluate" if command == "eval" else command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qkedit {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass
