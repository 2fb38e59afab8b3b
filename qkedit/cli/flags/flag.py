"""How a flag is declared: it means the same in every command, and can also be set elsewhere.

Each flag can also be set as `QKEDIT_<NAME>` in the environment and as a key of the YAML file given with `--config`
(`settings.py`); the flag wins over the environment, the environment over the file.
"""

from __future__ import annotations

from typing import Any

import typer

from qkedit.cli.settings import variable_of

MODE = "How to run"


def flag(name: str, *more: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """Return a Typer option that can also be set in the environment, as its name in capitals after `QKEDIT_`."""
    variable = variable_of(name.split("/")[0].removeprefix("--"))
    return typer.Option(name, *more, help=help, envvar=variable, show_envvar=False, rich_help_panel=panel, **settings)


def utf8(text: str | None) -> str | None:
    """Return what is asked of a model. Raises typer.BadParameter for bytes of a command line that are not UTF-8."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it holds bytes that are not UTF-8.") from None
    return text


# Where a value can come from, as Typer calls it, the strongest first.
_SOURCES = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")


def rank_of_source(context: typer.Context, name: str) -> int:
    """Return how near to the run the value of a parameter was given: 0 for the command line."""
    source = context.get_parameter_source(name)
    return _SOURCES.index(source.name if source else "DEFAULT")
