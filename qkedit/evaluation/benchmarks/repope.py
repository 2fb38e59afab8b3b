"""RePOPE (arXiv 2504.15707): POPE's questions with labels that people corrected; ambiguous questions are gone.

Its rows keep POPE's `question_id`, so that answers to POPE are scored as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qkedit.errors import UsageError
from qkedit.evaluation.benchmarks import pope
from qkedit.evaluation.benchmarks.yes_no import judge, parser_named, score_of
from qkedit.evaluation.files.answer_files import join
from qkedit.evaluation.files.data_files import find, required
from qkedit.evaluation.files.records import Answer, Question, Score

SPLITS = ("random", "popular", "adversarial")
_PLACES = ("repope", "annotations")
_PUBLISHED = "github.com/YanNeu/RePOPE (annotations/)"
# Every POPE file numbers its questions so; RePOPE dropped some of them.
_OF_POPE = frozenset(map(str, range(1, 3001)))

load_answers = pope.load_answers


def splits_in(data: Path) -> tuple[str, ...]:
    """Return the splits whose questions are below `data`."""
    return tuple(split for split in SPLITS if find(data, (_file(split),), _PLACES))


def load_questions(data: Path, split: str | None) -> tuple[Question, ...]:
    """Return a split's questions, from a directory with RePOPE's files or from one such file.

    Raises:
        UsageError: there is no such split, or none is named.
        QkeditError: the file is not there, or a row of it is not a question.
    """
    if data.is_file():
        return pope.read_questions(data)
    if split not in SPLITS:
        what = "no split is given" if split is None else f"there is no split {split!r}"
        raise UsageError(what, where="--split", remedy=f"choose among {', '.join(SPLITS)}")
    return pope.read_questions(required(data, (_file(split),), _PLACES, _PUBLISHED))


def score(
    questions: Sequence[Question],
    answers: Sequence[Answer],
    *,
    split: str | None = None,
    parser: str | None = None,
    allow_missing: bool = False,
) -> Score:
    """Return the score of one split; answers to POPE's further questions are left out.

    Args:
        questions: of the split.
        answers: to POPE's split of the same name.
        split: its name, for the score.
        parser: repope, official, vcd or opera; repope by default.
        allow_missing: leave out questions without an answer instead of refusing.

    Raises:
        QkeditError: answers and questions do not fit, or there is no such parser.
    """
    name, parse = parser_named(parser, "repope")
    joined = join(questions, answers, allow_missing=allow_missing, known=_OF_POPE)
    return score_of("repope", split, name, joined, judge(joined, parse))


def _file(split: str) -> str:
    return f"coco_repope_{split}.json"


class RePope(pope.Pope):
    """RePOPE (arXiv 2504.15707): POPE with other labels and splits; answers are read as POPE's."""

    name = "repope"
    title = "RePOPE"
    paper = "2504.15707"
    rules = ("repope", "official", "vcd", "opera")
    splits = SPLITS

    def read_questions(
        self, data: Path, split: str | None, rule: str | None, files: Mapping[str, Path]
    ) -> tuple[Question, ...]:
        """Return a split's questions; see `load_questions`."""
        return load_questions(data, split)

    def judge(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        *,
        split: str | None,
        rule: str | None,
        allow_missing: bool,
    ) -> Score:
        """Return the score of one split; see `score`."""
        return score(questions, answers, split=split, parser=rule, allow_missing=allow_missing)

    def splits_below(self, data: Path) -> tuple[str, ...]:
        """Return the splits whose questions are below `data`."""
        return splits_in(data)
