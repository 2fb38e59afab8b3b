"""The table of commands by name and panel, and look-ups in command lines and contexts, without importing commands."""

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
    "Run it, with plug-ins": (
        "generate",
        "serve",
        "plugins add",
        "plugins remove",
        "plugins list",
        "kv-coherence",
        "attention",
    ),
    "Measure what an edit did": ("eval", "score", "compare", "gate", "drift"),
    "Laboratory": ("demo", "sweep", "tune"),
}
COMMANDS = tuple(name for names in PANELS.values() for name in names)
# Commands of two words, by the first.
GROUPS = {"plugins": "Attach plug-ins to a model, remove them, or list them."}
FOLDERS = dict(zip(PANELS, ("edit", "run", "measure", "laboratory"), strict=True))
# The flags that may come before or after a command, with their number of words.
GLOBAL_FLAGS = {"--config": 2, "--json": 1, "--quiet": 1, "-q": 1, "--debug": 1}


def called(words: Sequence[str]) -> str | None:
    """Return the command in a command line, as spelled there, in one word or two, or None."""
    place = place_of_command(words)
    if place is None:
        return None
    first = words[place]
    if first not in GROUPS:
        return first
    following = place_of_command(words, place + 1)
    return first if following is None else f"{first} {words[following]}"


def place_of_command(words: Sequence[str], start: int = 0) -> int | None:
    """Return the position of the first word, from `start`, outside global flags; None if that word is an option."""
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
    """Return the name of a context's command, in one word or two; empty for `qkedit` itself."""
    parent: Any = context.parent
    return "" if parent is None else f"{command_name(parent)} {context.info_name}".lstrip()


def global_flag(context: Any, name: str) -> Any:
    """Return the value of a global flag after the command, else before it; None or False if it is not set."""
    return None if context is None else context.params.get(name) or global_flag(context.parent, name)


def origin(context: Any, parameter: Any) -> str:
    """Return `QKEDIT_K`, or `'k' in settings.yaml`; empty for a value from the command line, or without a value.

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
    """Add to an error about one option the place where its value was given."""
    # `k: 0 modes …` names the argument of the Python function, where there are no flags.
    about = [parameter for parameter in context.command.params if error.where in (*parameter.opts, parameter.name)]
    error.where = (origin(context, about[0]) if about else "") or error.where
    return error
