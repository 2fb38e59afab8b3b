"""Settings from the environment and from the YAML file of `--config`, and reports of unused ones.

A file may serve all commands: keys at the top are for all commands with that option, a section is for one command.

    model: ./Qwen2-VL-7B-Instruct
    steer:
      layers: 10-20
      out: ./edited
    eval:
      benchmark: pope

An unused setting must not be ignored silently: one that looks like a typing error is an error, others are named in a
warning.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from qkedit.cli.command_table import COMMANDS, GROUPS, command_name, global_flag
from qkedit.cli.old_words import section_of
from qkedit.cli.output import AHEAD
from qkedit.errors import UsageError, near_words

PREFIX = "QKEDIT_"
# The values for true and false in the environment and in a file.
YES = ("1", "true", "t", "yes", "y", "on")
NO = ("0", "false", "f", "no", "n", "off")
# Variables that need no option: a server's key, which no file and no command line may hold, a script's, and
# records, which whole sessions share and some commands read no model by.
_OTHER_VARIABLES = {"API_KEY", "ARCHITECTURES", "BENCHMARK_DATA"}
# A name that another command has for an option is a slip only if it is this near: `layer` to `layers`.
_SLIP = 0.85
# Options that answer one question, so that one in a section replaces the other at the top.
_ALTERNATIVES = ({"k", "energy"}, {"retain", "residual"})


def variable_of(option: str) -> str:
    """Return the environment variable that sets an option: `QKEDIT_COMPUTE_DTYPE` for `compute-dtype`."""
    return PREFIX + option.replace("-", "_").upper()


def unless_of_environment(
    context: typer.Context, parameter: typer.CallbackParam, directories: list[Path] | None
) -> list[Path] | None:
    """Leave QKEDIT_ARCHITECTURES to the reader of records, which takes it in Python too."""
    source = context.get_parameter_source(str(parameter.name))
    return None if source is not None and source.name == "ENVIRONMENT" else directories or None


def read_settings(file: Path) -> dict[Any, Any]:
    """Return the settings in a YAML file: each value as its literal text, or None for null.

    Options parse the text like that of the command line. In YAML itself 007 would be 7, and 1.10 would be 1.1.

    Raises:
        typer.BadParameter: the file cannot be read or is not a mapping in YAML.
    """
    from qkedit.strict_text import parse_yaml

    try:
        settings = parse_yaml(file.read_text("utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise typer.BadParameter(f"{file} is not valid YAML: {error}.") from None
    if settings is not None and not isinstance(settings, dict):
        raise typer.BadParameter(f"{file} must hold a mapping such as 'layers: 10-20'.")
    settings = settings or {}
    for mapping in (settings, *(section for section in settings.values() if isinstance(section, dict))):
        names = [_name(key) for key in mapping]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise typer.BadParameter(f"{file}: {twice!r} occurs twice, in two spellings.")
    return settings


def wants_json(file: Path, command: str) -> bool:
    """Return whether a file sets `json`, at the top or in the command's section; False if it cannot be read."""
    try:
        settings = read_settings(file)
    except typer.BadParameter:
        return False
    sections = [
        value for key, value in settings.items() if section_of(_name(key)) == command and isinstance(value, dict)
    ]
    return str((settings | (sections[0] if sections else {})).get("json")).lower() in YES


def read_configuration(context: typer.Context, file: Path | None) -> Path | None:
    """Take defaults of the command's options from a YAML file, and check the environment; the callback of `--config`.

    Raises:
        typer.BadParameter: a setting looks like a typing error, or has an invalid value.
    """
    if context.resilient_parsing:
        return file
    source = context.get_parameter_source("config")
    if source is None or source.name != "COMMANDLINE":
        file = global_flag(context.parent, "config") or file
    command, parameters = command_name(context), _parameters(context.command)
    _check_environment(command, parameters)
    if file is None:
        return None
    del parameters["config"]
    common, section = _parts(context, file, parameters)
    defaults = {
        parameter.name: entry
        for key, value in (common | section).items()
        if value is not None
        for parameter, entry in [_default(file, key, value, parameters[_name(key)])]
    }
    context.default_map = {**(context.default_map or {}), **defaults}
    return file


def _check_environment(command: str, parameters: Mapping[str, Any]) -> None:
    given = {name.removeprefix(PREFIX) for name in os.environ if name.startswith(PREFIX)} - _OTHER_VARIABLES
    own = {str(parameter.envvar).removeprefix(PREFIX) for parameter in parameters.values() if parameter.envvar}
    unread = sorted(given - own)
    for name in unread:
        option = _name(name)
        if option in parameters:  # such as NO_FSYNC
            near: str | None = str(parameters[option].envvar)
        else:
            found = _slip(option, [_name(known) for known in own], set(map(_name, given)))
            near = variable_of(found) if found else None
        if near:
            raise typer.BadParameter(
                f"{command} does not read {PREFIX}{name}; did you mean {near}?", param_hint="the environment"
            )
    if unread:
        _warn_unread(command, "the environment", [f"{PREFIX}{name}" for name in unread])


def _parts(context: typer.Context, file: Path, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys of the command at the top of a file, and those of its section."""
    command, settings = command_name(context), read_settings(file)
    section = _section(file, settings, command)
    for key in section:
        if _name(key) not in parameters:
            raise typer.BadParameter(_unknown(file, key, parameters, f" in the section {command}"))
    common: dict[str, Any] = {}
    unread: list[str] = []
    for key, value in settings.items():
        name = _name(key)
        if section_of(name) and (isinstance(value, dict) or value is None):
            continue
        if isinstance(value, dict) and name not in _options_of_all_commands(context):
            hint = _hint(name, COMMANDS, "sections are")
            raise typer.BadParameter(f"{file}: there is no command {key!r}; {hint}")
        if name in parameters:
            if not any(name in group and group & {*map(_name, section)} for group in _ALTERNATIVES):
                common[key] = value
        elif section_of(name) and name not in _options_of_all_commands(context):
            raise typer.BadParameter(f"{file}: {key!r} is a section; write its keys below it, indented.")
        elif name == "config" or name not in _options_of_all_commands(context):
            raise typer.BadParameter(_unknown(file, key, parameters))
        elif near_own := _slip(name, parameters, {*map(_name, settings), *map(_name, section)}):
            raise typer.BadParameter(
                f"{file}: {command} has no option {key!r}; did you mean {near_own!r}? "
                "If it is for another command, write it in that command's section."
            )
        else:
            unread.append(str(key))
    if unread:
        _warn_unread(command, str(file), unread)
    # A section's key replaces the same one at the top, however both are spelled.
    common = {key: value for key, value in common.items() if _name(key) not in {*map(_name, section)}}
    return common, section


def _section(file: Path, settings: Mapping[Any, Any], command: str) -> dict[Any, Any]:
    """Return the settings in the section of a command; empty without one."""
    found: dict[str, dict[Any, Any]] = {}
    for key, value in settings.items():
        if not isinstance(value, dict):
            continue
        inner = next((word for word, further in value.items() if isinstance(further, dict)), None)
        if _name(key) in GROUPS and inner is not None:
            raise typer.BadParameter(f"{file}: write the section {inner!r} of {key!r} as '{key} {inner}:' at the top.")
        if section_of(_name(key)) == command:
            found[str(key)] = value
    if len(found) > 1:
        raise typer.BadParameter(f"{file}: {' and '.join(map(repr, found))} are sections of one command; keep one.")
    return next(iter(found.values()), {})


def _unknown(file: Path, key: object, parameters: Collection[str], where: str = "") -> str:
    name = _name(key)
    if name == "config":
        return f"{file}: a file cannot name another by {key!r}; take the line out."
    return f"{file}: there is no option {key!r}{where}; {_hint(name, parameters, 'this command has')}"


def _hint(name: str, known: Collection[str], otherwise: str) -> str:
    near = near_words(name, known)
    return f"did you mean {near[0]!r}?" if near else f"{otherwise} {', '.join(sorted(known))}."


def _default(file: Path, key: object, value: Any, parameter: Any) -> tuple[Any, Any]:
    takes_several = getattr(parameter, "multiple", False)
    entries = value if takes_several and isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        taken = "values, not lists" if takes_several else "one value, not a list"
        raise typer.BadParameter(f"{file}: {key!r} takes {taken}; write it as text.")
    if f"--{_name(key)}" in parameter.secondary_opts:  # such as no-fsync, of which fsync is the parameter
        value = "false" if value.lower() in YES else "true" if value.lower() in NO else value
    return parameter, entries if takes_several else value


def _slip(name: str, own: Iterable[str], given: Collection[str]) -> str | None:
    """Return the option that `name` misspells; None if there is none, or if that option is also given."""
    near = near_words(name, own, likeness=_SLIP)
    return near[0] if near and near[0] not in given else None


def _warn_unread(command: str, where: str, names: list[str]) -> None:
    AHEAD.append(f"{command} does not use {', '.join(names)}, set in {where}")


def _name(key: object) -> str:
    return str(key).replace("_", "-").lower()


def _options_of_all_commands(context: typer.Context) -> set[str]:
    """Return the long flags of all commands."""
    return set(_options_below(context.find_root().command))


def _options_below(command: Any) -> Iterator[str]:
    below: Mapping[str, Any] = getattr(command, "commands", {})
    for further in below.values():
        yield from _options_below(further)
    if not below:
        yield from _parameters(command)


def _parameters(command: Any) -> dict[str, Any]:
    """Return the parameter of each long flag of a command; a pair such as --fsync and --no-fsync has one."""
    return {
        flag.removeprefix("--"): parameter
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("--")
    }


def on_command_line(context: typer.Context, name: str) -> bool:
    """Return whether a parameter was given on the command line, not in the environment or a file."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_without_effect(context: typer.Context, where: str, *names: str) -> None:
    """Refuse flags of the command line without effect; the environment and a file also serve other commands.

    Args:
        context: the context of the command.
        where: the circumstance, as the end of a sentence: `with --layout lora`.
        names: the names of the parameters without effect.

    Raises:
        UsageError: one of them was given on the command line.
    """
    for name in names:
        if on_command_line(context, name):
            raise UsageError(f"has no effect {where}", where=f"--{name.replace('_', '-')}", remedy="leave it out")
