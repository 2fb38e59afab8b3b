"""Read files of JSON objects, one per line or all in one array, so that every error names the file and the line.

The first character shows whether a file holds lines or an array. A byte-order mark, line ends of any system and blank
lines change nothing; everything else that is not a JSON object in UTF-8 is refused.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkedit.errors import QkeditError
from qkedit.strict_text import DECODER

# Answers to all published benchmarks together take some megabytes; a file of this size is not a file of answers.
LARGEST_FILE = 2**30
# No model writes this much. Only a broken file has such texts, and a tokenizer would take hours for them.
LONGEST_TEXT = 1_000_000
# Errors quote ids, so they must be short.
LONGEST_NAME = 1000


@dataclass(frozen=True)
class Row:
    """One object in a file, and the line on which it begins."""

    fields: dict[str, Any]
    file: str
    line: int

    def wrong(self, what: str, remedy: str = "correct the file") -> QkeditError:
        """Return the error that names this row."""
        return QkeditError(what, where=f"{self.file}, line {self.line}", remedy=remedy)

    def first_key(self, *keys: str) -> str | None:
        """Return the first of these keys that the row has."""
        for key in keys:
            if key in self.fields:
                return key
        return None

    def _first(self, keys: tuple[str, ...]) -> tuple[str, Any]:
        """Return the first of these keys that the row has, and its value. Raises QkeditError without one."""
        key = self.first_key(*keys)
        if key is None:
            raise self.wrong(f"has no {_either(keys)}", "see docs/evaluation.md for the format")
        return key, self.fields[key]

    def identifier(self, *keys: str) -> str:
        """Return the id under the first of these keys that the row has, as text. Raises QkeditError without one."""
        key, value = self._first(keys)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise self.wrong(f"{key} is neither a whole number nor a name")
        identifier = str(value)
        if len(identifier) > LONGEST_NAME:
            raise self.wrong(f"{key} has {len(identifier)} characters, more than {LONGEST_NAME}")
        return identifier

    def text(self, *keys: str) -> str:
        """Return the text under the first of these keys that the row has. Raises QkeditError without one."""
        key, value = self._first(keys)
        if not isinstance(value, str):
            raise self.wrong(f"{key} is not text")
        if len(value) > LONGEST_TEXT:
            raise self.wrong(f"{key} has {len(value)} characters, more than {LONGEST_TEXT}")
        return value


def read_text(file: Path) -> str:
    r"""Return a file's text, with `\n` for every kind of line end and without a byte-order mark.

    A file whose name ends in `.gz` is unpacked.

    Raises:
        QkeditError: it cannot be read, is too large or is not UTF-8.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            data = opened.read(LARGEST_FILE + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise QkeditError("is not a valid gzip file", where=str(file), remedy="copy it again") from None
    except OSError as error:
        raise QkeditError(
            f"cannot be read ({error.strerror})", where=str(file), remedy="name an existing file"
        ) from None
    if len(data) > LARGEST_FILE:
        raise QkeditError(f"is larger than {LARGEST_FILE} bytes", where=str(file), remedy="name another file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise QkeditError("is not UTF-8", where=f"{file}, line {line}", remedy="save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(file: Path, *, within: Sequence[str] = ()) -> list[Row]:
    """Return the objects of a file of JSON lines or of one JSON array.

    Args:
        within: keys under which a single object may hold the array instead.

    Raises:
        QkeditError: the file cannot be read, holds no object, or holds something other than objects.
    """
    text = read_text(file)
    place = text.find("[") if text.lstrip()[:1] == "[" else _place_within(text, file, within)
    values = _lines(text, file) if place is None else _array(text, file, place)
    rows = []
    for line, value in values:
        if not isinstance(value, dict):
            raise _wrong(file, line, "is not a JSON object")
        rows.append(Row(value, str(file), line))
    if not rows:
        raise QkeditError("is empty", where=str(file), remedy="name another file")
    return rows


def read_object(file: Path, *, keys: Collection[str] | None = None) -> dict[str, Any]:
    """Return the single object in a file, over any number of lines.

    Args:
        keys: the only keys to keep, in objects at every depth: the rest would fill the memory.

    Raises:
        QkeditError: the file cannot be read, or holds something else.
    """

    def kept(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if keys is not None and key in keys}

    text = read_text(file)
    try:
        value = DECODER.decode(text) if keys is None else json.loads(text, object_pairs_hook=kept)
    except json.JSONDecodeError as error:
        raise _wrong(file, error.lineno, f"is not valid JSON: {error.msg[:1].lower()}{error.msg[1:]}") from None
    except (ValueError, RecursionError) as error:
        raise QkeditError(f"is not valid JSON: {error}", where=str(file), remedy="correct the file") from None
    if not isinstance(value, dict):
        raise QkeditError("is not a JSON object", where=str(file), remedy="name another file")
    return value


def _lines(text: str, file: Path) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            value, end = _value(content, content.find(content.lstrip()[0]), file, line)
            if content[end:].strip():
                raise _wrong(file, line, "continues after its JSON object")
            yield line, value


def _place_within(text: str, file: Path, keys: Sequence[str]) -> int | None:
    """Return the position of the array under one of these keys, if the text is a single object with such an array."""
    place = _after_space(text, 0)
    if not keys or text[place : place + 1] != "{":
        return None
    _, end = _value(text, place, file, text.count("\n", 0, place) + 1)
    if text[end:].strip():
        return None
    while text[place] != "}" and text[_after_space(text, place + 1)] == '"':
        key, place = DECODER.raw_decode(text, _after_space(text, place + 1))
        place = _after_space(text, _after_space(text, place) + 1)
        if key in keys and text[place] == "[":
            return place
        _, place = DECODER.raw_decode(text, place)
        place = _after_space(text, place)
    return None


def _array(text: str, file: Path, place: int) -> Iterator[tuple[int, Any]]:
    """Yield the array's elements one by one, since a parser of the whole array would not give their lines."""
    line, counted = 1, 0
    is_whole = not text[:place].strip()
    place += 1
    expected = "value or ]"
    while True:
        place = _after_space(text, place)
        line, counted = line + text.count("\n", counted, place), place
        sign = text[place : place + 1]
        if sign == "]" and expected != "value":
            break
        if expected == ", or ]":
            if sign != ",":
                raise _wrong(file, line, "is not valid JSON: a comma or the end of the array is missing")
            place, expected = place + 1, "value"
            continue
        value, place = _value(text, place, file, line)
        yield line, value
        expected = ", or ]"
    if is_whole and text[place + 1 :].strip():
        raise _wrong(file, line, "continues after its JSON array")


def _after_space(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return space.end() if space else place


def _value(text: str, place: int, file: Path, line: int) -> tuple[Any, int]:
    """Return the JSON value at `place`, which is on this line, and the position of its end."""
    try:
        return DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        reason = error.msg[:1].lower() + error.msg[1:]
        raise _wrong(file, line + text.count("\n", place, error.pos), f"is not valid JSON: {reason}") from None
    except RecursionError:
        raise _wrong(file, line, "is nested too deeply") from None
    except ValueError as error:  # grammatical JSON with a value that Python refuses
        reason = str(error).partition(";")[0]
        raise _wrong(file, line, f"is not valid JSON: {reason}") from None


_SPACE = re.compile(r"[ \t\n]+")


def _wrong(file: Path, line: int, what: str) -> QkeditError:
    return QkeditError(what, where=f"{file}, line {line}", remedy="correct the file")


def _either(keys: tuple[str, ...]) -> str:
    return " or ".join(map(repr, keys))
