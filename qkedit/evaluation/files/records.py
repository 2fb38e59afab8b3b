"""Records of all benchmarks: questions with their truth, answers, and scores with one item per answer.

Identifiers are strings; numbers in a file become strings too. Every metric is a function of sums over items, so that a
comparison of two runs can resample items without knowing the benchmark. In JSON a score is one object of plain values,
with its items inline:

    {"benchmark": "pope", "split": "random", "parser": "official", "n": 3000, "counts": {…}, "metrics": {…},
     "printed": {…}, "warnings": [], "items": [{"id": "1", "parsed": "yes", "truth": "yes", "right": true, …}, …]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RULE_KINDS = ("parser", "variant")
# The key that says why an answer ended, and its value if the model ended it, both as in OpenAI's protocol.
FINISH_REASON = "finish_reason"
STOP, LENGTH = "stop", "length"
# The key of an answer's share of the wall time of its batch.
SECONDS = "seconds"
# The reason that servers give if the model ended its answer; there are many others: a limit, a filter, a failure.
_ENDED = (STOP, "eos", "eos_token", "end_turn", "stop_sequence", "complete", "tool_calls", "function_call")


@dataclass(frozen=True)
class Question:
    """One question about one image.

    Attributes:
        id: unique within a split.
        image: the image's file name, as published; empty where no image is shown.
        prompt: the question, as published.
        truth: `yes` or `no`, or the objects that the image shows.
        group: the group of items that are not independent, such as all questions about one image.
        fields: other values that the benchmark's own scoring needs, such as a task or a category.
    """

    id: str
    image: str
    prompt: str
    truth: str | tuple[str, ...]
    group: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A model's answer to the question with the same id.

    Attributes:
        text: the unchanged text, including spaces and line breaks at its ends.
        line: its line in the file, from 1.
        file: the file's name, for errors.
        fields: other values from the file, such as the image, a judge's label or the reason for the end.
    """

    id: str
    text: str
    line: int | None = None
    file: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True if the text is empty or blank."""
        return not self.text.strip()

    @property
    def is_cut(self) -> bool:
        """True if something other than the model ended the answer, according to its file."""
        reason = self.fields.get(FINISH_REASON)
        return reason not in (None, "") and str(reason).lower() not in _ENDED

    @property
    def where(self) -> str:
        """The place of the answer, for errors: `answers.jsonl, line 3`."""
        return ", ".join([self.file or "answers", *([] if self.line is None else [f"line {self.line}"])])


@dataclass(frozen=True)
class YesNoItem:
    """One judged answer to a question that yes or no answers.

    Attributes:
        parsed: `yes`, `no`, or None for an answer that is neither by the rules; with a judge, its verdict: `right`,
            `wrong` or `unclear`.
        right: whether it counts as right (an answer that is neither is wrong).
        counted: False if the rules drop the answer from every count, as RePOPE's drop those that are neither.
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
        hallucinated: the mentions of objects that the image does not show.
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
    """One judged answer to a question in AMBER, whose positive class is `no` and whose figures are in percent.

    Attributes:
        dimension: the subject of the question: `existence`, `state`, `number`, `action` or `relation`.
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
        likely: the objects that people would expect in such an image but that it does not show.
        fallen_for: the likely objects that are mentioned.
    """

    likely: tuple[str, ...] = ()
    fallen_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeasuredItem:
    """One answer as the numbers that its benchmark's metrics sum, for rules that no other kind of item fits.

    Attributes:
        sums: the answer's contribution to a metric's totals, by name; see `qkedit.evaluation.metric.measured`.
        truth: the question's ground truth, to check that two runs agree about it.
    """

    id: str
    sums: Mapping[str, tuple[float, ...]]
    truth: str = ""
    group: str = ""


Item = YesNoItem | CaptionItem | MeasuredItem


@dataclass(frozen=True)
class Score:
    """The score of one split of one benchmark.

    Attributes:
        benchmark: the benchmark's name, such as `pope`.
        split: `random`, `adversarial`, a task …; None for a benchmark without splits.
        rule: the parser or variant that was used.
        rule_kind: `parser` or `variant`: the key of the rule in the JSON.
        n: the number of scored answers.
        counts: the whole numbers that the metrics are computed from.
        metrics: the metrics by plain name; None where a denominator is zero.
        printed: the strings that the official script prints, by its own names.
        warnings: reasons not to trust the score.
        items: one item for each answer, in the questions' order.
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
