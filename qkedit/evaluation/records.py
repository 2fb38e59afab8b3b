"""What every benchmark speaks in: questions with their truth, answers, and scores with one item an answer.

Identifiers are strings, as a file's numbers and names both become one. Every metric is a ratio of sums over items,
so that a comparison of two runs can resample items without knowing the benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Question:
    """One thing that is asked about one image.

    Attributes:
        id: unique within a split.
        image: the image's file name, without its directory.
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
    """What a model said to the question of the same id; `line` is where its file says so, from 1."""

    id: str
    text: str
    line: int | None = None


@dataclass(frozen=True)
class YesNoItem:
    """One judged answer to a question that yes or no answers.

    Attributes:
        parsed: `yes`, `no`, or None for what the rules take for neither.
        right: whether it counts as right (an answer that is neither is wrong).
    """

    id: str
    parsed: str | None
    truth: str
    right: bool
    group: str = ""


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
