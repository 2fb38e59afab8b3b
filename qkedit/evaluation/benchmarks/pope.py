"""POPE (arXiv 2305.10355): is an object in the image? 3000 questions per split, half of them about absent objects.

The files, their parsers and formats are described in docs/evaluation.md.
"""

from __future__ import annotations

from pathlib import Path

from qkedit.evaluation.benchmarks.plain_functions import Answered, BenchmarkOfFunctions, Functions, Scorer
from qkedit.evaluation.benchmarks.yes_no import METRICS, score_yes_no
from qkedit.evaluation.files.answer_files import answer_in, read_answers
from qkedit.evaluation.files.data_files import FilePerSplit
from qkedit.evaluation.files.json_rows import read_rows
from qkedit.evaluation.files.records import Answer, Question, Score, YesNoItem

_NAMES = ("random", "popular", "adversarial")
# The published names; other repositories and the demo use the second one.
FILES = FilePerSplit(
    {
        **{name: (f"coco_pope_{name}.json", f"pope_{name}.json") for name in _NAMES},
        **{f"gqa-{name}": (f"gqa_pope_seem_{name}.json", f"gqa_pope_{name}.json") for name in _NAMES},
        **{f"aokvqa-{name}": (f"aokvqa_pope_seem_{name}.json", f"aokvqa_pope_{name}.json") for name in _NAMES},
    },
    ("pope", "coco", "gqa", "aokvqa", "output/coco", "output/seem/gqa", "output/seem/aokvqa"),
    "github.com/AoiDragon/POPE (output/)",
)
SPLITS = tuple(FILES.names)
_ID = "question_id"


def load_questions(data: Path, split: str | None) -> tuple[Question, ...]:
    """Return a split's questions.

    Args:
        data: a directory with POPE's files, or one such file.
        split: one of SPLITS; required if `data` is a directory.

    Raises:
        UsageError: there is no such split, or none is named.
        QkeditError: the file is missing, or a row is not a question.
    """
    return read_questions(FILES.of(data, split))


def read_questions(file: Path) -> tuple[Question, ...]:
    """Return the questions of a file in POPE's format, lines or an array of `question_id, image, text, label`.

    Raises:
        QkeditError: a row is not a question, or two rows have the same id.
    """
    questions: dict[str, Question] = {}
    for row in read_rows(file):
        identifier = row.identifier(_ID, "id")
        if identifier in questions:
            raise row.wrong(f"the id {identifier!r} occurs twice")
        label = row.text("label")
        if label not in ("yes", "no"):
            raise row.wrong(f"the label {label!r} is neither 'yes' nor 'no'")
        image = row.text("image")
        questions[identifier] = Question(identifier, image, row.text("text"), label, group=image)
    return tuple(questions.values())


def load_answers(file: Path) -> tuple[Answer, ...]:
    """Return the answers of a file: rows with `question_id`, or POPE's own rows without ids, in the questions' order.

    Raises:
        QkeditError: a row is not an answer, or some rows have an id and some have none.
    """
    rows = read_rows(file)
    with_id = [row.first_key(_ID, "id") is not None for row in rows]
    if not any(with_id) and rows[0].first_key("answer") is not None:
        # POPE's own script relies on the order, and its files number the questions from 1.
        return tuple(answer_in(row, str(number), ("answer",)) for number, row in enumerate(rows, start=1))
    return read_answers(file, ids=(_ID,), texts=("text",), rows=rows)


@Scorer
def score(given: Answered) -> Score:
    """Return the score of one split.

    Args:
        given: one answer to each question; the rule is official (the default), vcd, opera or repope.

    Raises:
        QkeditError: answers and questions do not match, or there is no such parser.
    """
    return score_yes_no("pope", given, given.joined(), "official")


class Pope(BenchmarkOfFunctions):
    """POPE (arXiv 2305.10355)."""

    name = "pope"
    title = "POPE"
    paper = "2305.10355"
    rules = ("official", "vcd", "opera", "repope")
    splits = SPLITS
    ids_restart_per_split = True
    metrics = METRICS
    item_kinds = (YesNoItem,)
    functions = Functions(load_questions, score, load_answers)
    published = FILES

    def splits_below(self, data: Path) -> tuple[str, ...]:
        """Return the splits whose questions are below `data`."""
        return self.published.splits_in(data)
