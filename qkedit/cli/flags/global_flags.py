"""The flags of every command, declared once."""

from __future__ import annotations

from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from qkedit.cli.flags.flag import MODE, flag
from qkedit.cli.settings import read_configuration

# The flags of every command, which may also come before its name: name, type, default, spellings, help.
_GLOBAL: tuple[tuple[str, Any, Any, tuple[str, ...], str], ...] = (
    (
        "config",
        Path | None,
        None,
        ("--config",),
        "YAML file with options, at the top level or in a section named after a command.",
    ),
    ("json", bool, False, ("--json",), "Print one JSON document on standard output."),
    ("quiet", bool, False, ("--quiet", "-q"), "Print no progress, warnings or summaries."),
    ("debug", bool, False, ("--debug",), "Show tracebacks of errors."),
)


def global_flags(*, of_command: bool) -> list[Parameter]:
    """Return the parameters that declare the global flags, for a command or for the group before it.

    The environment and the file of `--config` are read only for the command, once it is known.
    """
    parameters = []
    for name, kind, default, words, text in _GLOBAL:
        if not of_command:
            option = typer.Option(*words, help=text)
        elif name == "config":
            option = flag(*words, help=text, panel=MODE, is_eager=True, callback=read_configuration)
        else:
            option = flag(*words, help=text, panel=MODE)
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]))
    return parameters
