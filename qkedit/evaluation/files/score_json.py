"""Write scores as JSON and read them back: every field is checked, and every error names its place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qkedit.errors import QkeditError, counted
from qkedit.evaluation.files.records import (
    RULE_KINDS,
    AmberAnswerItem,
    AmberCaptionItem,
    CaptionItem,
    HallusionBenchItem,
    Item,
    MeasuredItem,
    Score,
    YesNoItem,
)


def score_as_dict(score: Score) -> dict[str, Any]:
    """Return a score as JSON values; `score_from_dict` is the inverse."""
    return {
        "benchmark": score.benchmark,
        "split": score.split,
        score.rule_kind: score.rule,
        "n": score.n,
        "counts": dict(score.counts),
        "metrics": dict(score.metrics),
        "printed": dict(score.printed),
        "warnings": list(score.warnings),
        "items": [item_as_dict(item) for item in score.items],
    }


def item_as_dict(item: Item) -> dict[str, Any]:
    """Return an item as JSON values: its fields, with tuples as lists."""
    return {name: _plain(value) for name, value in vars(item).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: list(numbers) for name, numbers in value.items()}
    return list(value) if isinstance(value, tuple) else value


def score_from_dict(row: Any, where: str = "score") -> Score:
    """Return the score that a result file holds.

    Args:
        row: the output of `score_as_dict`, read back from JSON.
        where: the place for error messages, such as the file and the number of the result.

    Raises:
        QkeditError: a key is missing or unknown, or a value has another type.
    """
    row = _mapping(row, where)
    kinds = [kind for kind in RULE_KINDS if kind in row]
    if len(kinds) != 1:
        raise _wrong(where, f"has {'both' if kinds else 'neither'} of the keys parser and variant")
    readers: Mapping[str, Reader] = {
        "benchmark": _text,
        "split": _text_or_none,
        kinds[0]: _text,
        "n": _count,
        "counts": _values_of(_count),
        "metrics": _values_of(_number_or_none),
        "printed": _values_of(_text),
        "warnings": _texts,
        "items": _items,
    }
    values = _fields(row, readers, where)
    check_number(values["n"], values["items"], where)
    check_names(values["metrics"], where)
    return Score(rule=values.pop(kinds[0]), rule_kind=kinds[0], **values)


def check_number(n: int | None, items: Sequence[Any], where: str) -> None:
    """Raise QkeditError for a result of more answers than items; some rules drop answers, so fewer can count."""
    if n is not None and n > len(items):
        raise _wrong(f"{where}: n", f"is {n}, and there are {counted(len(items), 'item')}")


def check_names(metrics: Iterable[str], where: str) -> None:
    """Raise QkeditError for a metric that no requirement can name: an empty name, or one with a blank."""
    for name in metrics:
        if not re.fullmatch(r"\S+", name):
            raise _wrong(f"{where}: metrics: {name!r}", "is not the name of a metric")


# Converts a JSON value to a field's value, or raises an error that begins with the given place.
Reader = Callable[[Any, str], Any]


def _wrong(where: str, what: str) -> QkeditError:
    return QkeditError(what, where=where, remedy="score the answers again to get a valid file")


def _fields(row: Mapping[str, Any], readers: Mapping[str, Reader], where: str) -> dict[str, Any]:
    """Read an object that has exactly these keys."""
    missing, unknown = sorted(readers.keys() - row.keys()), sorted(row.keys() - readers.keys())
    if missing or unknown:
        raise _wrong(where, f"lacks the key {missing[0]!r}" if missing else f"has an unknown key {unknown[0]!r}")
    return {name: read(row[name], f"{where}: {name}") for name, read in readers.items()}


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "is not a JSON object")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "is not text")
    return value


def _text_or_none(value: Any, where: str) -> str | None:
    return None if value is None else _text(value, where)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "is neither true nor false")
    return value


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(where, "is not a whole number from 0 on")
    return value


def _number_or_none(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(where, "is neither a number nor null")
    return value


def _numbers(value: Any, where: str) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "is not a list")
    numbers = tuple(_number_or_none(entry, where) for entry in value)
    if None in numbers:
        raise _wrong(where, "holds null among its numbers")
    return numbers  # type: ignore[return-value]  # looked through just now


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "is not a list")
    return tuple(_text(entry, where) for entry in value)


def _values_of(read: Reader) -> Reader:
    def read_values(value: Any, where: str) -> dict[str, Any]:
        return {name: read(entry, f"{where}: {name}") for name, entry in _mapping(value, where).items()}

    return read_values


def _items(value: Any, where: str) -> tuple[Item, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "is not a list")
    return tuple(_item(_mapping(row, f"{where}: {index}"), f"{where}: {index}") for index, row in enumerate(value))


def _item(row: Mapping[str, Any], where: str) -> Item:
    # The key `parsed` distinguishes the kinds: captions lack it. AMBER's and HallusionBench's items have further keys.
    if "parsed" in row:
        if "dimension" in row:
            return AmberAnswerItem(**_fields(row, {**_YES_NO, "dimension": _text}, where))
        if "hard" in row:
            return HallusionBenchItem(**_fields(row, {**_YES_NO, "hard": _flag}, where))
        return YesNoItem(**_fields(row, _YES_NO, where))
    if "sums" in row:
        return MeasuredItem(**_fields(row, _MEASURED, where))
    if "likely" in row:
        return AmberCaptionItem(**_fields(row, {**_CAPTION, "likely": _texts, "fallen_for": _texts}, where))
    return CaptionItem(**_fields(row, _CAPTION, where))


_YES_NO: Mapping[str, Reader] = {
    "id": _text,
    "parsed": _text_or_none,
    "truth": _text,
    "right": _flag,
    "group": _text,
    "counted": _flag,
}
_CAPTION: Mapping[str, Reader] = {
    "id": _text,
    "found": _texts,
    "hallucinated": _texts,
    "covered": _texts,
    "truth": _texts,
    "words": _count,
    "group": _text,
}
_MEASURED: Mapping[str, Reader] = {
    "id": _text,
    "sums": _values_of(_numbers),
    "truth": _text,
    "group": _text,
}
