"""A benchmark as plain functions that read its questions and answers, and score them.

The benchmarks of this package have this form: pure functions over records, and a class that names them. A
scoring function takes one value, `Answered`; as a `Scorer` it is called with the fields of that value.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from qkedit.evaluation.benchmarks.benchmark import Benchmark
from qkedit.evaluation.files.answer_files import Joined, join, read_answers
from qkedit.evaluation.files.records import Answer, Question, Score


@dataclass(frozen=True)
class Answered:
    """Questions, answers, and the rule to score them by.

    Attributes:
        questions: the questions of the split, or of the whole set that the split is part of.
        answers: the answers, in any order.
        split: the split's name; None if it is not named.
        rule: a parser or variant; None for the default.
        allow_missing: leave out questions without an answer instead of refusing.
    """

    questions: Sequence[Question]
    answers: Sequence[Answer]
    split: str | None = None
    rule: str | None = None
    allow_missing: bool = False

    def joined(self, questions: Sequence[Question] | None = None, known: Container[str] = ()) -> Joined:
        """Return the pairs of answers and questions, by default of all questions; see `join`. Raises QkeditError."""
        chosen = self.questions if questions is None else questions
        return join(chosen, self.answers, allow_missing=self.allow_missing, known=known)

    def joined_answered(self) -> Joined:
        """Return the pairs of all questions of a split, or without one of those answered. Raises QkeditError."""
        answered = {answer.id for answer in self.answers}
        asked = [question for question in self.questions if self.split is not None or question.id in answered]
        return self.joined(asked or self.questions)

    def joined_part(self, is_asked: Callable[[Question], bool]) -> Joined:
        """Return the pairs of the selected questions; other answers are left out. Raises QkeditError."""
        asked = [question for question in self.questions if is_asked(question)]
        return self.joined(asked, {question.id for question in self.questions})


class Scorer:
    """A function that scores an `Answered`, called with its fields; other keywords are passed on."""

    def __init__(self, function: Callable[..., Score]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __call__(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        *,
        split: str | None = None,
        rule: str | None = None,
        allow_missing: bool = False,
        **own: Any,
    ) -> Score:
        """Return the score; see `Answered` for the arguments. Raises QkeditError if they do not fit."""
        return self._function(Answered(questions, answers, split, rule, allow_missing), **own)


@dataclass(frozen=True)
class Functions:
    """The functions of a benchmark.

    Attributes:
        load_questions: takes a path, a split or None, and the benchmark's `files` by their names.
        score: the scoring function.
        load_answers: takes a file; the reader of the common format by default.
    """

    load_questions: Callable[..., tuple[Question, ...]]
    score: Scorer
    load_answers: Callable[[Path], tuple[Answer, ...]] = read_answers


class BenchmarkOfFunctions(Benchmark):
    """A benchmark whose class names the functions that do its work.

    Attributes:
        functions: the functions that read and score.
    """

    functions: ClassVar[Functions]

    def read_questions(
        self, data: Path, split: str | None, rule: str | None, files: Mapping[str, Path]
    ) -> tuple[Question, ...]:
        """Return a split's questions, or (None) all; the rule does not matter."""
        return self.functions.load_questions(data, split, **files)

    def judge(self, questions: Sequence[Question], answers: Sequence[Answer], **how: Any) -> Score:
        """Return the score of one split, by the benchmark's scoring function."""
        return self.functions.score(questions, answers, **how)

    def load_answers(self, file: Path) -> tuple[Answer, ...]:
        """Return the answers of a file in the benchmark's own format or the common one."""
        return self.functions.load_answers(file)
