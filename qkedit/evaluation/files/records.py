"""What every benchmark speaks in: questions with their truth, answers, and scores with one item an answer.

Identifiers are strings, as a file's numbers and names both become one. Every metric is a ratio of sums over items,
so that a comparison of two runs can resample items without knowing the benchmark. As JSON a score is one object of
plain values, with its items inline:

    {"benchmark": "pope", "split": "random", "parser": "official", "n": 3000, "counts": {…}, "metrics": {…},
     "printed": {…}, "warnings": [], "items": [{"id": "1", "parsed": "yes", "truth": "yes", "right": true, …}, …]}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qkedit.errors import QkeditError

RULE_KINDS = ("parser", "variant")
# Why an answer ends, under the key and in the words of OpenAI's protocol: the model ended it, or something else did.
FINISH_REASON = "finish_reason"
STOP, LENGTH = "stop", "length"
_CUT = (LENGTH, "max_tokens", "content_filter", "abort")


@dataclass(frozen=True)
class Question:
    """One thing that is asked about one image.

    Attributes:
        id: unique within a split.
        image: the image's file name, as published; empty where none is shown.
        prompt: what the model is asked, as published.
        truth: `yes` or `no`, or the objects that the image really shows.
        group: what is judged together and so is not independent, such as all questions about one image.
        fields: what else the benchmark's own scoring needs, such as a task or a category.
    """

    id: str
    image: str
    prompt: str
    truth: str | tuple[str, ...]
    group: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a model said to the question of the same id.

    Attributes:
        text: untouched, spaces and line breaks at its ends included.
        line: where its file says so, from 1.
        file: that file's name, for errors.
        fields: what else the file says of it, such as the image that was shown, a judge's label or why it ends.
    """

    id: str
    text: str
    line: int | None = None
    file: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said."""
        return not self.text.strip()

    @property
    def is_cut(self) -> bool:
        """Whether the answer was cut off, as far as its file tells."""
        return self.fields.get(FINISH_REASON) in _CUT

    @property
    def where(self) -> str:
        """The place of the answer, for errors: `answers.jsonl, line 3`."""
        return ", ".join([self.file or "answers", *([] if self.line is None else [f"line {self.line}"])])


@dataclass(frozen=True)
class YesNoItem:
    """One judged answer to a question that yes or no answers.

    Attributes:
        parsed: `yes`, `no`, or None for what the rules take for neither; where a judge read the answer, that one's
            word: `right`, `wrong` or `unclear`.
        right: whether it counts as right (an answer that is neither is wrong).
        counted: False where the rules drop the answer from every count, as RePOPE's drop those that are neither.
    """

    id: str
    parsed: str | None
    truth: str
    right: bool
    group: str = ""
    counted: bool = True


@dataclass(frozen=True)
class CaptionItem:
    """One judged caption.

    Attributes:
        found: every mention of an object, in order, repeats included.
        hallucinated: those of them that the image does not show.
        covered: the distinct true objects that are mentioned.
        truth: the distinct true objects.
        words: the caption's length.
    """

    id: str
    found: tuple[str, ...]
    hallucinated: tuple[str, ...]
    covered: tuple[str, ...]
    truth: tuple[str, ...]
    words: int
    group: str = ""


@dataclass(frozen=True)
class AmberAnswerItem(YesNoItem):
    """One judged answer to a question of AMBER, whose positive class is `no` and whose figures are in percent.

    Attributes:
        dimension: what is asked about: `existence`, `state`, `number`, `action` or `relation`.
    """

    dimension: str = ""


@dataclass(frozen=True)
class HallusionBenchItem(YesNoItem):
    """One judged answer to a question of HallusionBench.

    Attributes:
        hard: whether the figure was edited to change the answer (`visual_input` "2").
    """

    hard: bool = False


@dataclass(frozen=True)
class AmberCaptionItem(CaptionItem):
    """One caption judged by AMBER's rules, whose figures are in percent.

    Attributes:
        likely: the objects that people would expect in such an image and that it does not show.
        fallen_for: those of them that are mentioned.
    """

    likely: tuple[str, ...] = ()
    fallen_for: tuple[str, ...] = ()


Item = YesNoItem | CaptionItem


@dataclass(frozen=True)
class Score:
    """The score of one split of one benchmark.

    Attributes:
        benchmark: its name, such as `pope`.
        split: `random`, `adversarial`, a task …; None where a benchmark has no splits.
        rule: the parser or variant that was used.
        rule_kind: `parser` or `variant`: under which key the rule stands in the JSON.
        n: answers that were scored.
        counts: whole numbers the metrics come from.
        metrics: by plain name; None where a denominator is zero.
        printed: the strings that the official script prints, by its own names.
        warnings: what the reader should know before trusting the score.
        items: one for each answer, in the questions' order.
    """

    benchmark: str
    split: str | None
    rule: str
    n: int
    counts: Mapping[str, int]
    metrics: Mapping[str, float | None]
    printed: Mapping[str, str]
    items: tuple[Item, ...]
    warnings: tuple[str, ...] = ()
    rule_kind: str = "parser"


def score_as_dict(score: Score) -> dict[str, Any]:
    """Return a score as JSON takes it; `score_from_dict` is its inverse."""
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
    """Return an item as JSON takes it: its fields, tuples as lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(item).items()}


def score_from_dict(row: Any, where: str = "score") -> Score:
    """Return the score that a result file holds.

    Args:
        row: what `score_as_dict` gave, after JSON.
        where: what it is called in errors, such as the file and the number of the result.

    Raises:
        QkeditError: a key is missing or unknown, or a value is not of its kind.
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
    return Score(rule=values.pop(kinds[0]), rule_kind=kinds[0], **values)


# Turns a value from a JSON document into a field's value, or raises an error that begins with the place it is told.
Reader = Callable[[Any, str], Any]


def _wrong(where: str, what: str) -> QkeditError:
    return QkeditError(what, where=where, remedy="score the answers again to get a sound file")


def _fields(row: Mapping[str, Any], readers: Mapping[str, Reader], where: str) -> dict[str, Any]:
    """Read an object that has exactly these keys."""
    missing, unknown = sorted(readers.keys() - row.keys()), sorted(row.keys() - readers.keys())
    if missing or unknown:
        raise _wrong(where, f"lacks the key {missing[0]!r}" if missing else f"has an unknown key {unknown[0]!r}")
    return {name: read(row[name], f"{where}: {name}") for name, read in readers.items()}


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "is no JSON object")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "is no text")
    return value


def _text_or_none(value: Any, where: str) -> str | None:
    return None if value is None else _text(value, where)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "is neither true nor false")
    return value


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(where, "is no whole number from 0 on")
    return value


def _number_or_none(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(where, "is neither a number nor null")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "is no list")
    return tuple(_text(entry, where) for entry in value)


def _values_of(read: Reader) -> Reader:
    def read_values(value: Any, where: str) -> dict[str, Any]:
        return {name: read(entry, f"{where}: {name}") for name, entry in _mapping(value, where).items()}

    return read_values


def _items(value: Any, where: str) -> tuple[Item, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "is no list")
    return tuple(_item(_mapping(row, f"{where}: {index}"), f"{where}: {index}") for index, row in enumerate(value))


def _item(row: Mapping[str, Any], where: str) -> Item:
    # What was parsed tells the kinds apart: no caption has it. AMBER's and HallusionBench's have more keys.
    if "parsed" in row:
        if "dimension" in row:
            return AmberAnswerItem(**_fields(row, {**_YES_NO, "dimension": _text}, where))
        if "hard" in row:
            return HallusionBenchItem(**_fields(row, {**_YES_NO, "hard": _flag}, where))
        return YesNoItem(**_fields(row, _YES_NO, where))
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
