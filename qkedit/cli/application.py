"""The commands for Typer: a group that imports a command only when it is needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, get_type_hints

import typer

from qkedit.cli.command_table import COMMANDS, FOLDERS, GROUPS, PANELS
from qkedit.cli.flags.global_flags import global_flags
from qkedit.cli.flags.groups import flags_of, value_of
from qkedit.cli.help_pages import PageCommand, PageGroup
from qkedit.version import __version__

_NAME = "qkedit"
_HELP = ["-h", "--help"]
_CONTEXT: dict[str, Any] = {"help_option_names": _HELP, "max_content_width": 100}
# These accept the options of the named plug-in in addition to their own.
_WITH_FURTHER_OPTIONS = ("plugins add",)


def run(words: list[str]) -> int:
    """Run a command line, and return the exit code; errors are raised."""
    return application().main(words, prog_name=_NAME, standalone_mode=False) or 0


def application() -> Any:
    """Return the command line, a group of all commands: call it with words, or `main` of it."""
    app = typer.Typer(
        name=_NAME,
        cls=_LazyGroup,
        help="Edit the query-key products of vision-language checkpoints on disk.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=_CONTEXT,
    )
    app.callback()(_taking_global_flags(_main, of_command=False))
    return typer.main.get_command(app)


def made_command(name: str, *, to_run: bool = True) -> Any:
    """Return the command of this name, of one word or two; without its flags if it is only listed."""
    panel = next(panel for panel, names in PANELS.items() if name in names)
    function = _function(name, FOLDERS[panel])
    settings: dict[str, Any] = {} if " " in name else {"rich_help_panel": panel}
    context = dict(_CONTEXT)
    if name in _WITH_FURTHER_OPTIONS:
        context |= {"allow_extra_args": True, "ignore_unknown_options": True}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name.split()[-1], cls=PageCommand, help=_help(function), context_settings=context, **settings)(
        _taking_global_flags(function, of_command=True) if to_run else _nothing
    )
    return typer.main.get_command(app)


def _made_group(name: str) -> Any:
    panel = next(panel for panel, names in PANELS.items() if any(command.startswith(f"{name} ") for command in names))
    app = typer.Typer(
        name=name,
        cls=_LazyGroup,
        help=GROUPS[name],
        add_completion=False,
        rich_markup_mode=None,
    )
    app.callback(rich_help_panel=panel)(_taking_global_flags(_nothing, of_command=False))
    return typer.main.get_command(app)


class _Commands(Mapping[str, Any]):
    """The commands of a group by their last word, each created at its first use.

    Creating all of them with their flags takes 0.1 s, which a list does not need.
    """

    def __init__(self, group: str, *, to_run: bool = True) -> None:
        below = [name.removeprefix(group).split() for name in COMMANDS if name.startswith(group)]
        self.group = group
        self._made: dict[str, Any] = dict.fromkeys(words[0] for words in below)
        self._to_run = to_run

    def __getitem__(self, word: str) -> Any:
        if self._made[word] is None:
            self._made[word] = (
                _made_group(word) if word in GROUPS else made_command(self.group + word, to_run=self._to_run)
            )
        return self._made[word]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


class _LazyGroup(PageGroup):
    def __init__(self, *, name: str | None = None, **settings: Any) -> None:
        super().__init__(name=name, **settings)
        commands: Any = _Commands("" if name == _NAME else f"{name} ")
        self.commands = commands

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help with the commands and their summaries."""
        commands: Any = self.commands
        listed: Any = _Commands(commands.group, to_run=False)
        self.commands = listed
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = commands

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of this group's commands in the order of the table, without creating them."""
        return list(self.commands)


def _taking_global_flags(function: Callable[..., None], *, of_command: bool) -> Callable[..., None]:
    """Return a function that declares the flags of its groups one by one, and also the global flags.

    The values of global flags are in the context.
    """
    flags = global_flags(of_command=of_command)
    hints = get_type_hints(function, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in inspect.signature(function).parameters.values()
    ]

    def taking_flags(**values: Any) -> None:
        function(**{parameter.name: value_of(parameter, values) for parameter in own})

    parameters = [*(flag for parameter in own for flag in flags_of(parameter)), *flags]
    declared: Any = taking_flags
    declared.__signature__ = inspect.Signature(parameters)
    declared.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return taking_flags


def _help(function: Callable[..., None]) -> str:
    """Return a command's docstring with each paragraph on one line: Typer keeps line breaks and would wrap twice."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)


def _function(command: str, folder: str) -> Callable[..., None]:
    # A function called `eval` would hide Python's own.
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
