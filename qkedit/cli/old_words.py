"""Former names of commands: they still work, with a warning that names the new one."""

from __future__ import annotations

from collections.abc import Sequence

from qkedit.cli.command_table import COMMANDS, GROUPS, called, place_of_command

RENAMED = {"attach": "plugins add", "detach": "plugins remove", "coherence": "kv-coherence"}
# The command that a group alone means: `qkedit plugins ./model` lists.
BY_DEFAULT = {"plugins": "list"}


def in_todays_words(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Return a command line with the present name of its command, and a warning if it had an old one."""
    place = place_of_command(words)
    if place is None:
        return list(words), None
    before, command, rest = list(words[:place]), words[place], list(words[place + 1 :])
    if command in RENAMED:
        warning = f"`qkedit {command}` is now `qkedit {RENAMED[command]}`; the old name works until version 1.0"
        return [*before, *RENAMED[command].split(), *rest], warning
    if command in GROUPS and not (called(words) in COMMANDS or rest[:1] in (["-h"], ["--help"])):
        return [*before, command, BY_DEFAULT[command], *rest], None
    return list(words), None


def section_of(key: str) -> str | None:
    """Return the command for a section of a settings file, by its present or former name."""
    name = key.replace(" ", "-")
    if name in BY_DEFAULT:
        return f"{name} {BY_DEFAULT[name]}"
    return RENAMED.get(name) or next((command for command in COMMANDS if command.replace(" ", "-") == name), None)
