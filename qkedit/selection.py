"""The grammar of layers and heads, the same in every command, plug-in and file.

    layers   10-20 · 3,5,8-12 · all · mid · 0.35-0.7        both ends belong to a range
    heads    all · 0,3,8-12

`mid` is the middle third, `⌊L/3⌋ … ⌈2L/3⌉`; a fraction a-b of L layers is `⌊aL⌋ … ⌈bL⌉−1`. Both are our choices:
the paper (arXiv 2606.20419) says only "selected middle layers".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from operator import index

from qkedit.errors import UsageError

# Limited, since Python refuses to convert numbers of thousands of digits.
_NUMBERS = re.compile(r"([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?")
_FRACTION = r"([0-9]{0,18}\.[0-9]{1,18}|[0-9]{1,18}\.?)"
_FRACTIONS = re.compile(rf"{_FRACTION}\s*-\s*{_FRACTION}")

# The numbers in one part of a text, given the model's number of layers.
Part = Callable[[int], range]


Selection = str | int | Iterable[int]
"""Layers or heads in Python code: a text of the grammar, a number, a range or numbers."""


def selection_text(chosen: Selection, where: str = "layers") -> str:
    """Return a selection in the grammar: texts are unchanged, numbers become text such as `3,5-8`.

    Raises:
        UsageError: the selection is empty, or not a text or numbers from 0.
    """
    if isinstance(chosen, str):
        return chosen
    try:
        numbers = [index(chosen)] if not isinstance(chosen, Iterable) else sorted({index(one) for one in chosen})
    except TypeError:
        numbers = []
    if not numbers or numbers[0] < 0 or isinstance(chosen, bool):
        raise UsageError(f"{chosen!r} names none", where=where, remedy="give text such as '3,5-8', or numbers from 0")
    return describe(numbers)


def middle_layers(count: int) -> range:
    """Return the middle third of `count` layers, both ends inclusive and never beyond the last layer."""
    return range(count // 3, min(math.ceil(Fraction(2 * count, 3)), count - 1) + 1)


def select_layers(
    text: str, count: int, available: Sequence[int] | None = None, where: str = "layers"
) -> tuple[int, ...]:
    """Return the layers in `text`, ascending, for a model with `count` layers.

    Args:
        text: see the grammar above.
        count: the model's number of layers, L.
        available: the layers with a query-key product, to skip other layers in a range.
        where: the option with the text.

    Raises:
        UsageError: the text does not parse, names a layer outside 0 … L−1, or holds no available layer.
    """
    chosen = _within(_layer_parts(text, where, _has("layers", count)), count, where, _has("layers", count))
    selected = tuple(sorted(chosen if available is None else chosen.intersection(available)))
    if not selected:
        raise UsageError(
            f"{text!r} holds no layer with a query-key product",
            where=where,
            remedy=f"choose among {describe(available or ())}",
        )
    return selected


def check_layers(text: str | None, where: str = "layers") -> None:
    """Raise UsageError for a text that is invalid for every model, before the model is known; None is valid."""
    if text is not None:
        _layer_parts(text, where, "")


def select_heads(text: str, count: int) -> tuple[int, ...]:
    """Return the query heads in `text`, ascending, for a layer with `count` query heads.

    Raises:
        UsageError: the text does not parse or names a head outside 0 … count−1.
    """
    if text.strip() == "all":
        return tuple(range(count))
    known = _has("heads", count)
    parts = {part: _numbers(part, text, "heads", "all or 0,3,8-12", known) for part in _split(text)}
    return tuple(sorted(_within(parts, count, "heads", known)))


def describe(numbers: Sequence[int]) -> str:
    """Return ascending numbers as short ranges: `0-3, 7, 9-11`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _layer_parts(text: str, where: str, known: str) -> dict[str, Part]:
    return {part: _layers(part, text, where, known) for part in _split(text)}


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _layers(part: str, text: str, where: str, known: str) -> Part:
    if part == "all":
        return range
    if part == "mid":
        return middle_layers
    if match := _FRACTIONS.fullmatch(part) if "." in part else None:
        low, high = (Fraction(end.rstrip(".")) for end in match.groups())
        if not low < high <= 1:
            raise UsageError(
                f"{part!r} is not part of a model's layers",
                where=where,
                remedy=_joined("give fractions a-b with 0 ≤ a < b ≤ 1", known),
            )
        return lambda count: range(math.floor(low * count), math.ceil(high * count))
    return _numbers(part, text, where, "10-20, 3,5,8-12, all, mid or 0.35-0.7", known)


def _numbers(part: str, text: str, where: str, examples: str, known: str) -> Part:
    match = _NUMBERS.fullmatch(part)
    if match is None:
        raise UsageError(f"{text!r} cannot be read", where=where, remedy=_joined(f"write {examples}", known))
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise UsageError(f"{part!r} runs backwards", where=where, remedy=_joined(f"write {last}-{first}", known))
    return lambda count: range(first, last + 1)


def _within(parts: dict[str, Part], count: int, where: str, known: str) -> set[int]:
    chosen: set[int] = set()
    for part, named in parts.items():
        numbers = named(count)
        if numbers.stop > count:
            raise UsageError(f"{part!r} goes beyond the model", where=where, remedy=known)
        chosen.update(numbers)
    return chosen


def _has(what: str, count: int) -> str:
    return f"the model has {what} 0 to {count - 1}, both included"


def _joined(*clauses: str) -> str:
    return "; ".join(filter(None, clauses))
