"""Read records in YAML or JSON into frozen dataclasses; errors name the file and the key in one sentence.

A record's keys and their types are the fields of its dataclass and their hints. `keyed` gives a field another name in
the file; `__post_init__` raises ValueError for conditions beyond types. Values are not converted: `layers: "12"` is
text.
Hand-written files are read strictly, since an unknown key is a mistake there. In files written by a program an unknown
key comes from a later version.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from qkedit.errors import QkeditError, did_you_mean

Record = TypeVar("Record")
_SCALARS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


@dataclass(frozen=True)
class Strictness:
    """The rules by which records are refused, besides missing keys and wrong types."""

    unknown_keys: bool  # keys without a field; otherwise they are ignored
    empty: bool  # empty lists and texts


HAND_WRITTEN = Strictness(unknown_keys=True, empty=True)
MACHINE_WRITTEN = Strictness(unknown_keys=False, empty=False)


class RecordError(QkeditError):
    """A record is invalid; the message names the file and the key."""


def wrong(what: str, where: str, remedy: str = "correct the record") -> RecordError:
    """Return the error for a record: the fault, and its file and key."""
    return RecordError(what, where=where, remedy=remedy)


def keyed(key: str, **settings: Any) -> Any:
    """Return a dataclass field with the name `key` in the file."""
    return field(metadata={"key": key}, **settings)


def quoted(value: object) -> str:
    """Return a value for a message, shortened and in ASCII."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


def closest(word: object, known: Iterable[str]) -> str:
    """Return the remedy for an unknown word: the nearest known one, else all of them."""
    # The text of a list made of YAML aliases could fill the memory.
    return did_you_mean(word if isinstance(word, str) else "", sorted(known), "known are")


def read_record(kind: type[Record], value: object, where: str, refused: Strictness = HAND_WRITTEN) -> Record:
    """Convert a mapping to a record.

    Args:
        kind: a dataclass.
        value: the parsed YAML or JSON.
        where: the file and the place in it, for messages.
        refused: what to refuse in addition to wrong types.

    Raises:
        RecordError: a key is missing or unknown, or a value has the wrong type.
    """
    keys: dict[str, Field[Any]] = _keys(kind)  # type: ignore[arg-type]  # a class is hashable
    if not isinstance(value, dict):
        raise wrong(f"is {quoted(value)}, not a mapping with the keys {', '.join(keys)}", where)
    for key in value:
        if key not in keys and refused.unknown_keys:
            raise wrong(f"has the unknown key {quoted(key)}", where, closest(key, keys))
    required = [key for key, one in keys.items() if one.default is MISSING and one.default_factory is MISSING]
    if missing := [key for key in required if key not in value]:
        raise wrong(f"lacks {', '.join(missing)}", where)
    hints = _hints(kind)  # type: ignore[arg-type]
    read = {
        keys[key].name: _value(hints[keys[key].name], item, f"{where}, {key}", refused)
        for key, item in value.items()
        if key in keys
    }
    try:
        return kind(**read)
    except ValueError as error:
        raise wrong(str(error), where) from error


def read_records(kind: type[Record], value: object, where: str) -> tuple[Record, ...]:
    """Convert a list of mappings to records. Raises RecordError as `read_record` does."""
    if not isinstance(value, list) or not value:
        raise wrong("is not a list of records", where)
    return tuple(read_record(kind, item, f"{where}, record {number}") for number, item in enumerate(value, start=1))


def as_plain(value: Any) -> Any:
    """Convert a record, or a value in one, to plain JSON that `read_record` reads as an equal one.

    An optional field that is None is left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        keys = _keys(type(value)).items()
        items = {key: (getattr(value, one.name), one.default is MISSING) for key, one in keys}
        return {key: as_plain(item) for key, (item, needed) in items.items() if needed or item is not None}
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _keys(kind: Any) -> dict[str, Field[Any]]:
    return {one.metadata.get("key", one.name): one for one in fields(kind)}


def _value(hint: Any, value: object, where: str, refused: Strictness) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return _alternative(arguments, value, where, refused)
    if is_dataclass(hint) and isinstance(hint, type):
        return read_record(hint, value, where, refused)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _word(hint, value, where)
    if origin is re.Pattern:
        return _pattern(value, where)
    if origin is tuple:
        return _list(arguments, value, where, refused)
    if origin is dict:
        return _mapping(arguments[1], value, where, refused)
    if not _is_scalar(hint, value, refused):
        raise wrong(f"is {quoted(value)}, not {_SCALARS[hint]}", where)
    return value


def _alternative(arguments: tuple[Any, ...], value: object, where: str, refused: Strictness) -> Any:
    """Read the value as the only alternative that is not a plain type, or as the plain type that it has."""
    if any(_is_scalar(argument, value, refused) for argument in arguments):
        return value
    structured = [argument for argument in arguments if argument not in _SCALARS]
    if structured and value is not None:
        return _value(structured[0], value, where, refused)
    expected = " or ".join(_SCALARS.get(argument, "a list") for argument in arguments)
    raise wrong(f"is {quoted(value)}, not {expected}", where)


def _is_scalar(hint: Any, value: object, refused: Strictness) -> bool:
    """Return whether a value has a plain type; true is not a number, and empty text can be refused."""
    if hint is float:
        return type(value) in (int, float)
    return hint in _SCALARS and type(value) is hint and not (refused.empty and value == "")


def _word(hint: type[StrEnum], value: object, where: str) -> StrEnum:
    words = [word.value for word in hint]
    if not isinstance(value, str) or value not in words:
        raise wrong(f"is {quoted(value)}, which is not a known word", where, closest(value, words))
    return hint(value)


def _pattern(value: object, where: str) -> re.Pattern[str]:
    if not _is_scalar(str, value, HAND_WRITTEN):
        raise wrong(f"is {quoted(value)}, not a regular expression", where)
    try:
        return re.compile(str(value))
    except (re.error, OverflowError, RecursionError) as error:
        raise wrong(f"is not a regular expression ({error})", where) from error


def _list(arguments: tuple[Any, ...], value: object, where: str, refused: Strictness) -> tuple[Any, ...]:
    if not isinstance(value, list) or (refused.empty and not value):
        raise wrong(f"is {quoted(value)}, not a list", where)
    hints = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
    if len(value) != len(hints):
        raise wrong(f"is {quoted(value)}, not a list of {len(hints)}", where)
    return tuple(
        _value(hint, item, f"{where} {number}" if is_dataclass(hint) else where, refused)
        for number, (hint, item) in enumerate(zip(hints, value, strict=True), start=1)
    )


def _mapping(hint: Any, value: object, where: str, refused: Strictness) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise wrong(f"is {quoted(value)}, not a mapping of names to values", where)
    return {key: _value(hint, item, f"{where}.{key}", refused) for key, item in value.items()}
