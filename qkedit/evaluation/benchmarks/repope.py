"""RePOPE (arXiv 2504.15707): POPE's questions with manually corrected labels and without ambiguous questions.

Its rows keep POPE's `question_id`, so that answers to POPE can be scored unchanged.
"""

from __future__ import annotations

from pathlib import Path

from qkedit.evaluation.benchmarks import pope
from qkedit.evaluation.benchmarks.plain_functions import Answered, Functions, Scorer
from qkedit.evaluation.benchmarks.yes_no import score_yes_no
from qkedit.evaluation.files.data_files import FilePerSplit
from qkedit.evaluation.files.records import Question, Score

FILES = FilePerSplit(
    {split: (f"coco_repope_{split}.json",) for split in ("random", "popular", "adversarial")},
    ("repope", "annotations"),
    "github.com/YanNeu/RePOPE (annotations/)",
)
SPLITS = tuple(FILES.names)
# Every POPE file numbers its questions this way; RePOPE removed some of them.
_OF_POPE = frozenset(map(str, range(1, 3001)))

load_answers = pope.load_answers


def load_questions(data: Path, split: str | None) -> tuple[Question, ...]:
    """Return a split's questions, from a directory with RePOPE's files or from one such file.

    Raises:
        UsageError: there is no such split, or none is named.
        QkeditError: the file is missing, or a row is not a question.
    """
    return pope.read_questions(FILES.of(data, split))


@Scorer
def score(given: Answered) -> Score:
    """Return the score of one split; answers to POPE's other questions are left out.

    Args:
        given: answers to POPE's split of the same name; the rule is repope (the default), official, vcd or opera.

    Raises:
        QkeditError: answers and questions do not match, or there is no such parser.
    """
    return score_yes_no("repope", given, given.joined(known=_OF_POPE), "repope")


class RePope(pope.Pope):
    """RePOPE (arXiv 2504.15707): POPE with other labels and splits; answers are read as POPE's."""

    name = "repope"
    title = "RePOPE"
    paper = "2504.15707"
    rules = ("repope", "official", "vcd", "opera")
    splits = SPLITS
    functions = Functions(load_questions, score, load_answers)
    published = FILES
