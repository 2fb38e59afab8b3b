"""The interface of a benchmark: a class that owns its questions, its rules, its metrics and the files it needs.

A benchmark of this package is one module or one folder next to this file; another package names its class with an
entry point (docs/adding-a-benchmark.md). A subclass sets the attributes and implements `read_questions` and `judge`;
the rest has defaults.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Self

from qkedit.errors import QkeditError, UsageError, did_you_mean
from qkedit.evaluation.files.answer_files import read_answers
from qkedit.evaluation.files.records import Answer, CaptionItem, Item, MeasuredItem, Question, Score, YesNoItem
from qkedit.evaluation.metric import Metric


class Benchmark(ABC):
    """One benchmark.

    Attributes:
        name: the name on the command line and in JSON.
        title: the name in its paper.
        paper: its arXiv number; empty without one.
        rules: parsers or variants, the default first.
        rule_kind: `parser` or `variant`.
        splits: all splits; empty if users may name a split freely.
        aggregates: the splits that are totals over other splits.
        ids_restart_per_split: whether ids start again in each split, so that only the split's name distinguishes them.
        max_new_tokens: the maximum length of an answer; the published one for captions, ample for yes-or-no questions.
        files: further files that `read_questions` accepts, by names that become options of `score`.
        metrics: every metric that a score can have, with its direction and unit.
        item_kinds: the kinds of items that its scores have and its metrics accept.
        optional_metrics: slow metrics, which `judge` computes only if a user asks for them.
        also: the optional metrics that the user asked for; see `with_metrics`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    rules: ClassVar[tuple[str, ...]] = ("official",)
    rule_kind: ClassVar[str] = "parser"
    splits: ClassVar[tuple[str, ...]] = ()
    aggregates: ClassVar[tuple[str, ...]] = ()
    ids_restart_per_split: ClassVar[bool] = False
    max_new_tokens: ClassVar[int] = 128
    files: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]] = ()
    item_kinds: ClassVar[tuple[type[Item], ...]] = (YesNoItem, CaptionItem, MeasuredItem)
    optional_metrics: ClassVar[tuple[str, ...]] = ()
    also: tuple[str, ...] = ()

    @abstractmethod
    def read_questions(
        self, data: Path, split: str | None, rule: str | None, files: Mapping[str, Path]
    ) -> tuple[Question, ...]:
        """Return a split's questions, or (None) all of a benchmark whose splits are parts of one set.

        Args:
            data: the directory with the published files, or one such file.
            split: one of the benchmark's splits.
            rule: the parser or variant for their scoring; None for the default.
            files: the files given for `self.files`.

        Raises:
            QkeditError: there is no such split, a file is missing, or it does not hold questions.
        """

    @abstractmethod
    def judge(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        *,
        split: str | None,
        rule: str | None,
        allow_missing: bool,
    ) -> Score:
        """Return the score of one split.

        Args:
            questions: the questions of the split, or of the whole set that the split is part of.
            answers: the answers, in any order.
            split: the split's name.
            rule: one of `self.rules`; None for the default.
            allow_missing: leave out questions without an answer instead of refusing.

        Raises:
            QkeditError: answers and questions do not match.
        """

    def splits_below(self, data: Path) -> tuple[str, ...]:
        """Return the splits whose questions are below a directory; called only if `ids_restart_per_split`."""
        return self.splits

    def load_answers(self, file: Path) -> tuple[Answer, ...]:
        """Return the answers of a file in the benchmark's own format or in the common one. Raises QkeditError."""
        return read_answers(file)

    def splits_answered(self, questions: Sequence[Question], answers: Sequence[Answer]) -> tuple[str | None, ...]:
        """Return the splits to score for these answers if none is named; empty if nothing is answered."""
        return (None,)

    def metrics_of(self, items: Sequence[Item]) -> tuple[Metric, ...]:
        """Return the metrics of these items of one split, which may depend on the items."""
        return self.metrics

    def takes_shown_images(self, split: str | None) -> bool:
        """Return whether to ask only about existing images, since the ground truth covers many more."""
        return False

    @property
    def single_question_set(self) -> bool:
        """True if all splits are parts of one set of questions, so that an id alone identifies a question."""
        return bool(self.splits) and not self.ids_restart_per_split

    def load_questions(
        self, data: Path, split: str | None = None, rule: str | None = None, files: Mapping[str, Path] | None = None
    ) -> tuple[Question, ...]:
        """Check the rule and the files, then return the questions as `read_questions` does.

        Raises:
            QkeditError: there is no such split or rule, a file is missing, or it does not hold questions.
        """
        self.check_rule(rule)
        for name in files or {}:
            if name not in self.files:
                raise UsageError(f"{self.title} does not use it", where=f"--{name.replace('_', '-')}")
        return self.read_questions(data, split, rule, files or {})

    def splits_in(self, data: Path) -> tuple[str | None, ...]:
        """Return the splits that together contain all questions below `data`.

        Raises:
            QkeditError: there are no questions of a benchmark that comes in one file per split.
        """
        if not self.ids_restart_per_split or data.is_file():
            return (None,)
        splits = self.splits_below(data)
        if not splits:
            # Its error names the file and says where it is published.
            self.load_questions(data, self.splits[0])
        return splits

    def answered_splits(
        self, questions: Sequence[Question], answers: Sequence[Answer], split: str | None = None
    ) -> tuple[str | None, ...]:
        """Return the splits to score: the named one, or every answered part of the questions.

        Raises:
            QkeditError: nothing is answered.
        """
        if split is not None:
            return (split,)
        splits = self.splits_answered(questions, answers)
        if not splits:
            raise QkeditError(
                f"holds no answer to any question of {self.title}",
                where=next((answer.file for answer in answers if answer.file), "answers"),
                remedy="name the answers to this benchmark",
            )
        return splits

    def score(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        *,
        split: str | None = None,
        rule: str | None = None,
        allow_missing: bool = False,
    ) -> Score:
        """Return the score of one split by a parser or variant, by default the first. Raises QkeditError."""
        self.check_rule(rule)
        return self.judge(questions, answers, split=split, rule=rule, allow_missing=allow_missing)

    def scores(
        self, questions: Sequence[Question], answers: Sequence[Answer], *, split: str | None = None, **how: Any
    ) -> tuple[Score, ...]:
        """Return the score of one split, or (None) of each split that is scored separately; `how` as for `score`.

        Raises:
            QkeditError: as for `score`.
        """
        splits = self.answered_splits(questions, answers, split)
        return tuple(self.score(questions, answers, split=part, **how) for part in splits)

    def with_metrics(self, names: Sequence[str]) -> Self:
        """Return this benchmark with some of its optional metrics as well. Raises UsageError for any other name."""
        for name in names:
            if name not in self.optional_metrics:
                remedy = did_you_mean(name.lower(), self.optional_metrics) if self.optional_metrics else "leave it out"
                raise UsageError(f"{self.title} has no further metric {name!r}", where="--also", remedy=remedy)
        asked = copy(self)
        asked.also = tuple(dict.fromkeys(names))
        return asked

    def check_rule(self, rule: str | None) -> None:
        """Raise UsageError if there is no such parser or variant."""
        if rule is not None and rule not in self.rules:
            raise UsageError(
                f"{self.title} has no {self.rule_kind} {rule!r}",
                where=f"--{self.rule_kind}",
                remedy=did_you_mean(rule.lower(), self.rules),
            )
