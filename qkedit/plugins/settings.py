"""Parse plug-ins and their options, from the command line, a settings file, or the file next to a model's weights.

    --plugin scr                                   with its default options
    --plugin dscr:depth=street.npy,blend=0.5       with some options; a piece without "=" belongs to the one before,
    --plugin scr:layers=0,3,5-8,sources=16         so that a value may hold commas
    --plugin both.json                             a file
    --plugin none                                  no plug-ins, even if some are attached next to the weights

    {"schema": 1, "plugins": [{"name": "scr", "options": {"layers": "0-11"}}]}

Plug-ins are attached in the order given. Options are checked against the fields of the plug-in's class.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

from qkedit.errors import UsageError, did_you_mean
from qkedit.plugins.registry import described, kinds_of, plugin_class, plugin_names, plugin_options
from qkedit.strict_text import json_text, parse_json

SCHEMA = 1
NONE = "none"


@dataclass(frozen=True)
class PluginSettings:
    """One plug-in and the options set for it; other options keep their defaults."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of a settings file."""
        return {"name": self.name, "options": dict(self.options)}


def parse_plugins(texts: Sequence[str], *, repeated: bool = False) -> tuple[PluginSettings, ...] | None:
    """Return the plug-ins of all `--plugin` options in order; None without any `--plugin`.

    Args:
        texts: the values of the options.
        repeated: whether a plug-in may occur twice, because the plug-ins do not act together.

    Raises:
        UsageError: a plug-in, an option or a value is unknown, `none` is combined with others, or a plug-in
            occurs twice.
    """
    if not texts:
        return None
    if NONE in texts:
        if len(texts) > 1:
            raise UsageError("none is combined with other plug-ins", where="--plugin", remedy="give one or the other")
        return ()
    parsed: list[PluginSettings] = []
    for text in texts:
        parsed += read_plugins(Path(text)) if text.lower().endswith(".json") and ":" not in text else [_parsed(text)]
    return tuple(parsed) if repeated else _each_once(parsed, "--plugin")


def parse_options(name: str, texts: Mapping[str, str], where: str) -> PluginSettings:
    """Parse a plug-in's options. Raises UsageError for an unknown option or an invalid value."""
    hints = _hints(name, texts, where)
    return PluginSettings(
        name, {key: _from_text(text, hints[key], f"{where} {key}={text}") for key, text in texts.items()}
    )


def read_plugins(file: Path) -> tuple[PluginSettings, ...]:
    """Read a settings file. Raises UsageError if it is missing or invalid."""
    try:
        document = parse_json(file.read_bytes(), file_names=True)
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", where=str(file), remedy="check the path") from error
    except ValueError as error:
        raise UsageError(f"is not valid JSON ({error})", where=str(file), remedy="correct the file") from error
    return parse_document(document, str(file))


def parse_document(document: object, where: str) -> tuple[PluginSettings, ...]:
    """Check a settings document: `{"schema": 1, "plugins": [{"name": …, "options": {…}}]}`.

    Raises:
        UsageError: the document has a later schema, or another form.
    """
    if isinstance(document, dict) and isinstance(document.get("schema"), int) and document["schema"] > SCHEMA:
        raise UsageError(
            f"was written by a later qkedit (schema {document['schema']})", where=where, remedy="update qkedit"
        )
    if (
        not isinstance(document, dict)
        or document.keys() != {"schema", "plugins"}
        or document["schema"] != SCHEMA
        or not isinstance(document["plugins"], list)
    ):
        raise _malformed(where)
    return _each_once([_from_record(record, where) for record in document["plugins"]], where)


def dump_plugins(plugins: Sequence[PluginSettings]) -> bytes:
    """Return the bytes of a settings file."""
    document = {"schema": SCHEMA, "plugins": [plugin.as_dict() for plugin in plugins]}
    # A path may hold bytes that are not UTF-8; backslashreplace writes them as JSON escapes.
    return json_text(document, indent=2, ascii_only=False).encode(errors="backslashreplace")


def with_absolute_paths(plugin: PluginSettings) -> PluginSettings:
    """Return the settings with absolute paths, so that they are valid in any working directory."""
    hints = get_type_hints(plugin_class(plugin.name))
    options = {
        key: os.path.abspath(value) if Path in kinds_of(hints[key]) and os.path.exists(value) else value
        for key, value in plugin.options.items()
    }
    return PluginSettings(plugin.name, options)


def make_plugins(settings: Sequence[PluginSettings]) -> list[Any]:
    """Create the plug-ins, ready to be attached. Raises UsageError for invalid options."""
    return [plugin_class(plugin.name)(**plugin.options) for plugin in settings]


def parse_words(words: Sequence[str]) -> tuple[PluginSettings, ...]:
    """Parse the words of a command: plug-ins, each optionally followed by its options as flags.

        scr --layers 0-11 dscr:blend=0.5 --depth street.npy

    Raises:
        UsageError: as in `parse_plugins`, or a flag has no value or no plug-in before it.
    """
    texts: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            texts.append(word)
            continue
        key, equals, value = word.removeprefix("--").partition("=")
        if not texts:
            known = " or ".join(plugin_names())
            raise UsageError("there is no plug-in before the option", where=word, remedy=f"name {known}")
        if not equals and (value := next(rest, "--")).startswith("--"):
            raise UsageError("the option has no value", where=f"--{key}", remedy=f"write --{key} VALUE")
        texts[-1] += f"{',' if ':' in texts[-1] else ':'}{key}={value}"
    return parse_plugins(texts) or ()


def _parsed(text: str) -> PluginSettings:
    name, _, rest = text.partition(":")
    options: dict[str, str] = {}
    last = ""
    for piece in rest.split(",") if rest else ():
        key, equals, value = piece.partition("=")
        if equals and key:
            last = key.strip().replace("-", "_")
            if last in options:
                raise UsageError(f"sets {last} twice", where=f"--plugin {text}", remedy="set it once")
            options[last] = value
        elif last:
            options[last] += f",{piece}"
        else:
            raise UsageError(
                f"{piece!r} is not an option", where=f"--plugin {text}", remedy="write NAME:key=value,key=value"
            )
    return parse_options(name, options, f"--plugin {name}")


def _from_record(record: object, where: str) -> PluginSettings:
    if not isinstance(record, dict) or not {"name"} <= record.keys() <= {"name", "options"}:
        raise _malformed(where)
    name, options = record["name"], record.get("options", {})
    if not isinstance(name, str) or not isinstance(options, dict):
        raise _malformed(where)
    hints = _hints(name, options, where)
    return PluginSettings(
        name, {key: _from_json(value, hints[key], f"{where}: {key}") for key, value in options.items()}
    )


def _hints(name: str, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the types of a plug-in's options. Raises UsageError if it does not have one of `options`."""
    known = [option.name for option in plugin_options(name)]
    for key in options:
        if key not in known:
            remedy = did_you_mean(key, known, "it has")
            raise UsageError(f"{name} has no option {key!r}", where=where, remedy=remedy)
    return get_type_hints(plugin_class(name))


def _each_once(plugins: Sequence[PluginSettings], where: str) -> tuple[PluginSettings, ...]:
    names = [plugin.name for plugin in plugins]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is named twice", where=where, remedy="name each plug-in once")
    return tuple(plugins)


def _from_text(text: str, hint: Any, where: str) -> Any:
    kinds = kinds_of(hint)
    if text.lower() in ("none", "null") and NoneType in kinds:
        return None
    if text.lower() in ("true", "false") and bool in kinds:
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            try:
                return _from_json(kind(text), hint, where)
            except ValueError:
                pass
    return _from_json(text, hint, where)


def _from_json(value: Any, hint: Any, where: str) -> Any:
    kinds = kinds_of(hint)
    if value in [kind for kind in kinds if isinstance(kind, str)]:
        return value
    if type(value) is int and float in kinds and int not in kinds:
        value = float(value)
    if type(value) in kinds and not (isinstance(value, float) and not math.isfinite(value)):
        return value
    raise UsageError(f"{value!r} is not allowed", where=where, remedy=f"give {described(hint)}")


def _malformed(where: str) -> UsageError:
    return UsageError(
        "is not a list of plug-ins",
        where=where,
        remedy='write {"schema": 1, "plugins": [{"name": "scr", "options": {}}]}',
    )
