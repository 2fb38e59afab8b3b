"""Declare flags that mean the same in every command, and can also be set elsewhere.

Each flag can also be set as `QKEDIT_<NAME>` in the environment and as a key of the YAML file given with `--config`
(`settings.py`); the flag wins over the environment, the environment over the file.
"""

from __future__ import annotations

from typing import Any

import typer

from qkedit.cli import completion
from qkedit.cli.settings import variable_of

MODE = "How to run"


def flag(name: str, *more: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """Return a Typer option that can also be set in the environment, by `QKEDIT_` and its name in capitals.

    The shell completes its values as `completion.OF_FLAGS` says.
    """
    settings |= {"envvar": variable_of(name.split("/")[0].removeprefix("--")), "show_envvar": False}
    completer = completion.OF_FLAGS.get(name)
    return typer.Option(name, *more, help=help, rich_help_panel=panel, autocompletion=completer, **settings)


def utf8(text: str | None) -> str | None:
    """Return a prompt unchanged. Raises typer.BadParameter for bytes of a command line that are not UTF-8."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it holds bytes that are not UTF-8.") from None
    return text


# The sources of a value, by Typer's names, in the order of precedence.
_SOURCES = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")


def rank_of_source(context: typer.Context, name: str) -> int:
    """Return the rank of a parameter's source in the order of precedence: 0 for the command line."""
    source = context.get_parameter_source(name)
    return _SOURCES.index(source.name if source else "DEFAULT")
