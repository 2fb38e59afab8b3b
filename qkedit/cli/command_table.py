"""Every command by name and panel, imported when it is called for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import import_module
from inspect import getdoc
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qkedit.version import __version__

PANELS = {
    "Edit a checkpoint": ("steer", "inspect", "verify", "diff", "apply", "models"),
    "Run it, with plug-ins": ("generate", "serve", "plugins add", "plugins remove", "plugins list", "kv-coherence"),
    "Measure what an edit did": ("eval", "score", "compare", "gate", "drift"),
    "Laboratory": ("demo", "sweep"),
}
COMMANDS = tuple(name for names in PANELS.values() for name in names)
# Commands of two words, by the first.
GROUPS = {"plugins": "Attach plug-ins to a model, remove them, or list them."}
_FOLDERS = dict(zip(PANELS, ("edit", "run", "measure", "laboratory"), strict=True))
# These take the options of whatever plug-in is named besides their own.
_WITH_FURTHER_OPTIONS = ("plugins add",)
_ORDER = tuple(dict.fromkeys(name.split()[0] for name in COMMANDS))


class _InOrder(TyperGroup):
    """Lists commands as the table does; Typer itself puts groups before them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of this group's commands."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)


def application(commands: Collection[str] = COMMANDS) -> typer.Typer:
    """Return the command line with these commands alone: to import and describe all of them takes 0.1 s."""
    app = typer.Typer(
        name="qkedit",
        cls=_InOrder,
        help="Edit the query-key products of vision-language checkpoints on disk.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_main)
    groups: dict[str, typer.Typer] = {}
    for panel, names in PANELS.items():
        for name in names:
            if name not in commands:
                continue
            group, _, word = name.rpartition(" ")
            if group and group not in groups:
                groups[group] = typer.Typer(help=GROUPS[group], no_args_is_help=True)
                app.add_typer(groups[group], name=group, rich_help_panel=panel)
            settings: dict[str, Any] = {} if group else {"rich_help_panel": panel}
            if name in _WITH_FURTHER_OPTIONS:
                settings["context_settings"] = {"allow_extra_args": True, "ignore_unknown_options": True}
            groups.get(group, app).command(word, help=_help(_function(name)), **settings)(_function(name))
    # A group with one command is a group all the same.
    for own in groups.values():
        own.callback()(_nothing)
    return app


def command_name(context: typer.Context) -> str:
    """Return the name of the command that a context is of, in one word or two; empty for that of `qkedit` itself."""
    parent: Any = context.parent
    return "" if parent is None else f"{command_name(parent)} {context.info_name}".lstrip()


def leaves(group: Any) -> dict[str, Any]:
    """Return the commands of a group that `typer.main.get_command` made by name, in one word or two."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= {f"{name} {word}": leaf for word, leaf in leaves(command).items()}
        else:
            found[name] = command
    return found


def _help(function: Callable[..., None]) -> str:
    """Return a command's docstring with each paragraph on one line: Typer keeps line breaks and would wrap twice."""
    paragraphs = (getdoc(function) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)


def _function(command: str) -> Callable[..., None]:
    # A function called `eval` would hide Python's own.
    folder = next(_FOLDERS[panel] for panel, names in PANELS.items() if command in names)
    name = command.replace(" ", "_").replace("-", "_")
    module = import_module(f"qkedit.cli.commands.{folder}.{name}")
    function: Callable[..., None] = getattr(module, "evaluate" if command == "eval" else name)
    return function


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qkedit {__version__}")
        raise typer.Exit


def _nothing() -> None:
    pass


def _main(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass
