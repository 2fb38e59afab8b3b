"""Every command by name and panel, and what a command line or a context says about it; imports no command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError

if TYPE_CHECKING:
    import typer

PANELS = {
    "Edit a checkpoint": (
        "steer",
        "inspect",
        "verify",
        "diff",
        "apply",
        "merge",
        "interpolate",
        "revert",
        "export",
        "push",
        "models",
    ),
    "Run it, with plug-ins": ("generate", "serve", "plugins add", "plugins remove", "plugins list", "kv-coherence"),
    "Measure what an edit did": ("eval", "score", "compare", "gate", "drift"),
    "Laboratory": ("demo", "sweep"),
}
COMMANDS = tuple(name for names in PANELS.values() for name in names)
# Commands of two words, by the first.
GROUPS = {"plugins": "Attach plug-ins to a model, remove them, or list them."}
FOLDERS = dict(zip(PANELS, ("edit", "run", "measure", "laboratory"), strict=True))
# The flags that may come before a command as well as after it, and of how many words each consists.
GLOBAL_FLAGS = {"--config": 2, "--json": 1, "--quiet": 1, "-q": 1, "--debug": 1}


def called(words: Sequence[str]) -> str | None:
    """Return the command that a command line calls, as it is spelled there, in one word or two; None for none."""
    place = place_of_command(words)
    if place is None:
        return None
    first = words[place]
    if first not in GROUPS:
        return first
    following = place_of_command(words, place + 1)
    return first if following is None else f"{first} {words[following]}"


def place_of_command(words: Sequence[str], start: int = 0) -> int | None:
    """Return where the first word from `start` on stands that belongs to no global flag; None if that is an option."""
    place = start
    while place < len(words):
        word = words[place]
        if not word.startswith("-"):
            return place
        name, equals, _ = word.partition("=")
        if name not in GLOBAL_FLAGS:
            return None
        place += 1 if equals else GLOBAL_FLAGS[name]
    return None


def command_name(context: typer.Context) -> str:
    """Return the name of the command that a context is of, in one word or two; empty for that of `qkedit` itself."""
    parent: Any = context.parent
    return "" if parent is None else f"{command_name(parent)} {context.info_name}".lstrip()


def global_flag(context: Any, name: str) -> Any:
    """Return what a global flag was set to at the command, else before its name; None or False if nowhere."""
    return None if context is None else context.params.get(name) or global_flag(context.parent, name)


def origin(context: Any, parameter: Any) -> str:
    """Return `QKEDIT_K`, or `'k' in settings.yaml`; empty for a value of the command line, or one that is not given.

    Args:
        context: of the command, as Typer makes it.
        parameter: of the command.
    """
    source = None if context is None or parameter is None else context.get_parameter_source(str(parameter.name))
    if source is None:
        return ""
    if source.name == "ENVIRONMENT":
        return str(parameter.envvar)
    if source.name == "DEFAULT_MAP":
        flag = next(name for name in parameter.opts if name.startswith("--"))
        return f"{flag.removeprefix('--')!r} in {global_flag(context, 'config')}"
    return ""


def as_given(context: Any, error: QkeditError) -> QkeditError:
    """Return an error about one option with the place where that option's value was given."""
    # `k: 0 modes …` is what Python is told, too, where there are no flags.
    about = [parameter for parameter in context.command.params if error.where in (*parameter.opts, parameter.name)]
    error.where = (origin(context, about[0]) if about else "") or error.where
    return error
