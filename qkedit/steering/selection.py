"""The grammar of `--layers` and `--heads`.

    layers   10-20 · 3,5,8-12 · all · mid · 0.35-0.7        both ends belong to a range
    heads    all · 0,3,8-12

`mid` is the middle third, `⌊L/3⌋ … ⌈2L/3⌉`; a fraction a-b of L layers is `⌊aL⌋ … ⌈bL⌉−1`. Both are choices of
ours: the paper (arXiv 2606.20419) says "selected middle layers" and no more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from qkedit.errors import UsageError

# Bounded, since Python refuses to convert numbers of thousands of digits.
_NUMBER = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"([0-9]{1,18})\s*-\s*([0-9]{1,18})")
_FRACTION = r"([0-9]{0,18}\.[0-9]{1,18}|[0-9]{1,18}\.?)"
_FRACTIONS = re.compile(rf"{_FRACTION}\s*-\s*{_FRACTION}")


def middle_layers(count: int) -> range:
    """Return the middle third of `count` layers, both ends included and never beyond the last layer."""
    return range(count // 3, min(math.ceil(Fraction(2 * count, 3)), count - 1) + 1)


def select_layers(text: str, count: int, available: Sequence[int]) -> tuple[int, ...]:
    """Return the layers that `text` names, ascending, of a model with `count` layers.

    Args:
        text: see the grammar above.
        count: the model's number of layers, L.
        available: the layers that have a query-key product; others in a range are left out.

    Raises:
        UsageError: the text does not parse, names a layer outside 0 … L−1, or holds no available layer.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        chosen.update(_layers_of(part.strip(), text, count))
    selected = tuple(sorted(chosen.intersection(available)))
    if not selected:
        raise UsageError(
            f"{text!r} holds no layer with a query-key product",
            where="layers",
            remedy=f"choose among {describe(available)}",
        )
    return selected


def _layers_of(part: str, text: str, count: int) -> range:
    if part == "all":
        return range(count)
    if part == "mid":
        return middle_layers(count)
    if match := _FRACTIONS.fullmatch(part) if "." in part else None:
        low, high = (Fraction(end.rstrip(".")) for end in match.groups())
        if not low < high <= 1:
            raise UsageError(
                f"{part!r} is no part of the model's layers 0 to {count - 1}",
                where="layers",
                remedy="give fractions a-b with 0 ≤ a < b ≤ 1",
            )
        return range(math.floor(low * count), math.ceil(high * count))
    return _numbers_of(part, text, count, "layers", "10-20, 3,5,8-12, all, mid or 0.35-0.7")


def select_heads(text: str, count: int) -> tuple[int, ...]:
    """Return the query heads that `text` names, ascending, of a layer with `count` query heads.

    Raises:
        UsageError: the text does not parse or names a head outside 0 … count−1.
    """
    if text.strip() == "all":
        return tuple(range(count))
    heads: set[int] = set()
    for part in text.split(","):
        heads.update(_numbers_of(part.strip(), text, count, "heads", "all or 0,3,8-12"))
    return tuple(sorted(heads))


def _numbers_of(part: str, text: str, count: int, what: str, examples: str) -> range:
    if _NUMBER.fullmatch(part):
        first = last = int(part)
    elif match := _RANGE.fullmatch(part):
        first, last = map(int, match.groups())
    else:
        raise UsageError(f"{text!r} cannot be read", where=what, remedy=f"write {examples}; {_has(what, count)}")
    if first > last:
        raise UsageError(f"{part!r} runs backwards", where=what, remedy=f"write {last}-{first}; {_has(what, count)}")
    if last >= count:
        raise UsageError(f"{part!r} goes beyond the model", where=what, remedy=_has(what, count))
    return range(first, last + 1)


def _has(what: str, count: int) -> str:
    return f"the model has {what} 0 to {count - 1}, both included"


def describe(numbers: Sequence[int]) -> str:
    """Return ascending numbers as short ranges: `0-3, 7, 9-11`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
