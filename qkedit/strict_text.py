"""Parse untrusted JSON and YAML: the result is a value that is safe to use, or a ValueError.

Text written here can be read by any program: UTF-8 with a final line break, and neither NaN nor infinity.

A model's manifest, card or plug-in file comes from the network. Python's own readers accept input that no other
program reads (NaN, repeated keys, lone surrogates, numbers beyond every other type), and YAML's aliases expand a few
hundred bytes to gigabytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

# The limit for YAML. Its parser takes up to three seconds for this length; cards and settings have a few kilobytes.
MAX_YAML_LENGTH = 100_000
MAX_YAML_DEPTH = 20  # levels of lists and mappings; cards have up to seven, and each costs the reader time
# Levels of lists and objects of JSON. Files hold up to ten. Python's own limit is that of its stack: a document
# that is read in one place could be too deep for code that walks through it in another.
MAX_DEPTH = 100
# A float holds whole numbers of up to 309 digits; ids of 64 and 128 bits have fewer than 40. Callers check for less.
MOST_DIGITS = 300
_SHOWN = 40  # characters of a number
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
# Lone surrogates; and the same without those by which Python represents single bytes.
_HALF = re.compile("[\ud800-\udfff]")
_HALF_BUT_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: bytes | str, *, file_names: bool = False) -> Any:
    """Parse a JSON document to the values of Python's json.

    Args:
        content: the document.
        file_names: whether it may contain file names with bytes that are not UTF-8. Python represents each such byte
            as a lone surrogate, and we write it as an escape.

    Raises:
        ValueError: the document is not JSON or not UTF-8, is nested too deeply, has a key twice, or contains NaN, an
            infinity, a number beyond float64, or a lone surrogate.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = DECODER.decode(text)
        # Decoded text contains surrogates only by escapes, so text without an escape need not be searched.
        if _ESCAPED_HALF.search(text):
            _refuse(_HALF_BUT_NO_BYTE if file_names else _HALF, value)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    refuse_deep(value)
    return value


def json_text(value: Any, *, indent: int | None = None, ascii_only: bool = True) -> str:
    """Return a JSON document with a final line break: a whole file, or without an indent one line.

    Args:
        value: a value that Python's json can write.
        indent: the number of spaces per level; None for one line.
        ascii_only: whether other characters are written as escapes.

    Raises:
        ValueError: the value contains NaN or an infinity, which are not JSON.
    """
    return json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False) + "\n"


def json_lines(rows: Iterable[Any], *, ascii_only: bool = True) -> str:
    """Return one JSON document per line. Raises ValueError as `json_text` does."""
    return "".join(json_text(row, ascii_only=ascii_only) for row in rows)


def refuse_deep(value: Any) -> None:
    """Raise ValueError for lists and dictionaries nested for more than `MAX_DEPTH` levels."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [item for item in level if isinstance(item, list | dict)]
        if not containers:
            return
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    raise ValueError("it is nested too deeply")


def parse_yaml(text: str) -> Any:
    """Parse a YAML document to mappings, lists, and values as their literal text, with None for null.

    Tags have no effect, so 007 is "007" and 2024-02-30 is not a date.

    Raises:
        ValueError: the document is not YAML, longer than `MAX_YAML_LENGTH` characters, nested too deeply, has a key
            twice or uses an alias.
    """
    import yaml

    if len(text) > MAX_YAML_LENGTH:
        raise ValueError(f"it is longer than {MAX_YAML_LENGTH} characters")
    try:
        return yaml.load(text, Loader=_plain_loader())
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


@cache
def _plain_loader() -> type[yaml.BaseLoader]:
    import yaml

    class PlainLoader(yaml.BaseLoader):
        """A loader without aliases and types; defined here, since importing yaml takes as long as `--help`."""

        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="aliases are refused", problem_mark=self.peek_event().start_mark)
            # Counted during reading, whose time grows with length and depth.
            self.depth += 1
            if self.depth > MAX_YAML_DEPTH and not self.check_event(yaml.ScalarEvent):
                raise ValueError("it is nested too deeply")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_scalar(self, node: yaml.ScalarNode) -> Any:
            return None if node.style is None and node.value in _NULLS else super().construct_scalar(node)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # not hashable, so Python itself reports it
                if key.value in keys:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} occurs twice", problem_mark=key.start_mark)
                keys.add(key.value)
            return super().construct_mapping(node, deep=deep)

    return PlainLoader


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"the key {key[:100]!a} occurs twice")
        unique[key] = value
    return unique


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _beyond_float(digits)
    return number


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _beyond_float(digits)
    return int(digits)


def _beyond_float(digits: str) -> ValueError:
    shown = digits if len(digits) <= _SHOWN else f"a number of {len(digits)} digits"
    return ValueError(f"{shown} is beyond float64")


# Every value is unambiguous and fits into a float. Lone surrogates pass; `parse_json` refuses them.
DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole
)


def _refuse(pattern: re.Pattern[str], value: Any) -> None:
    if isinstance(value, str) and pattern.search(value):
        raise ValueError(f"{value[:100]!a} is not valid Unicode")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse(pattern, key)
            _refuse(pattern, item)
    elif isinstance(value, list):
        for item in value:
            _refuse(pattern, item)
