"""Read JSON and YAML that strangers wrote: whatever they hold is a value that can be worked with, or a ValueError.

What is written here can be read back by any program: UTF-8 with a line break at its end, and neither NaN nor infinity.

A model's manifest, card or plug-in file comes from the network. Python's own readers take what no other program reads
(NaN, a key given twice, half a character, numbers beyond every other type), and YAML's aliases make gigabytes out of
a few hundred bytes.
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

# Of YAML. Its reader takes up to three seconds for this much; cards and settings are some kilobytes.
MAX_YAML_LENGTH = 100_000
MAX_YAML_DEPTH = 20  # levels of lists and mappings; cards have up to seven, and each costs the reader time
# Levels of lists and objects of JSON. Files hold up to ten. Python's own limit is that of its stack: what is read at
# one place could be too deep for the code that walks through it at another.
MAX_DEPTH = 100
# A float holds whole numbers of up to 309 digits; ids of 64 and 128 bits have fewer than 40. Who needs less checks it.
MOST_DIGITS = 300
_SHOWN = 40  # characters of a number
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
# Halves of characters that UTF-16 writes as two; and the same but for those by which Python spells single bytes.
_HALF = re.compile("[\ud800-\udfff]")
_HALF_BUT_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: bytes | str, *, file_names: bool = False) -> Any:
    """Return what a JSON document holds, as Python's json does.

    Args:
        content: the document.
        file_names: whether it may hold names of files, which may hold bytes that are not UTF-8; Python spells each of
            these as a half of a character, and we write it as an escape.

    Raises:
        ValueError: it is not JSON or not UTF-8, nests too deep, gives a key twice, or holds NaN, an infinity, a number
            beyond float64, or half a character.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = DECODER.decode(text)
        # Decoded text holds no half by itself, so there is nothing to look through without an escape.
        if _ESCAPED_HALF.search(text):
            _refuse(_HALF_BUT_NO_BYTE if file_names else _HALF, value)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    refuse_deep(value)
    return value


def json_text(value: Any, *, indent: int | None = None, ascii_only: bool = True) -> str:
    """Return a JSON document with a line break at its end: a whole file, or without an indent a line of one.

    Args:
        value: what Python's json can write.
        indent: spaces of each level; None for one line.
        ascii_only: whether other characters are written as escapes.

    Raises:
        ValueError: it holds NaN or an infinity, which are not JSON.
    """
    return json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False) + "\n"


def json_lines(rows: Iterable[Any], *, ascii_only: bool = True) -> str:
    """Return one JSON document per line. Raises ValueError as `json_text` does."""
    return "".join(json_text(row, ascii_only=ascii_only) for row in rows)


def refuse_deep(value: Any) -> None:
    """Raise ValueError for lists and dictionaries within one another for more than `MAX_DEPTH` levels."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [item for item in level if isinstance(item, list | dict)]
        if not containers:
            return
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    raise ValueError("it nests too deep")


def parse_yaml(text: str) -> Any:
    """Return what a YAML document holds: mappings, lists, each value as the text that is written there, None for null.

    Tags change nothing, so 007 is "007" and 2024-02-30 is not a date.

    Raises:
        ValueError: it is not YAML, longer than `MAX_YAML_LENGTH` characters, nests too deep, gives a key twice or
            uses an alias.
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
        """Knows neither aliases nor types; made here, since importing yaml takes as long as `--help`."""

        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="aliases are not taken", problem_mark=self.peek_event().start_mark)
            # Counted while it is read, as what is read takes time by its length and its depth.
            self.depth += 1
            if self.depth > MAX_YAML_DEPTH and not self.check_event(yaml.ScalarEvent):
                raise ValueError("it nests too deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_scalar(self, node: yaml.ScalarNode) -> Any:
            return None if node.style is None and node.value in _NULLS else super().construct_scalar(node)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # no key to Python, which says so
                if key.value in keys:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value!r} stands there twice", problem_mark=key.start_mark
                    )
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


# Every value means one thing and fits into a float. Halves of characters pass; `parse_json` refuses them.
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
