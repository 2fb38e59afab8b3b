"""MME (arXiv 2306.13394): 14 tasks with two questions per image, one true and one false.

A task's score is 100 · acc + 100 · acc+, where acc is the share of right answers and acc+ the share of images whose
two answers are both right. The splits are the tasks, and three totals of tasks: hallucination (the four coarse-grained
ones, as hallucination papers report them), perception and cognition.

Answers come as a directory of `TASK.txt` with the lines `image⇥question⇥truth⇥answer`, one such file, or the common
format with the ids `TASK/image/1` and `TASK/image/2`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.plain_functions import Answered, Scorer
from qkedit.evaluation.benchmarks.yes_no import confusion, quotient, undefined
from qkedit.evaluation.files.answer_files import Joined, read_answers
from qkedit.evaluation.files.data_files import find, required
from qkedit.evaluation.files.json_rows import LONGEST_TEXT, read_text
from qkedit.evaluation.files.records import Answer, Question, Score, YesNoItem

HALLUCINATION = ("existence", "count", "position", "color")
# In the order in which the official script adds the scores, since the order determines the last digit.
PERCEPTION = (*HALLUCINATION, "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = (*PERCEPTION, *COGNITION)
AGGREGATES = {"hallucination": HALLUCINATION, "perception": PERCEPTION, "cognition": COGNITION}
SPLITS = (*TASKS, *AGGREGATES)
_PLACES = ("mme/questions", "questions", "mme", "Your_Results", "eval_tool/Your_Results")
_PUBLISHED = "github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation (tools/eval_tool.zip)"
_COLUMNS = "image, question, truth and answer, with tabs between"


def load_questions(data: Path, split: str | None) -> tuple[Question, ...]:
    """Return the questions of a task, of the tasks of a total, or (split None) of every task in the data.

    Args:
        data: a directory with the published `TASK.txt`, or one such file.
        split: one of SPLITS or None.

    Raises:
        UsageError: there is no such split.
        QkeditError: a file is missing, or a line is not a question.
    """
    if data.is_file():
        return _read_questions(data)
    if split is None:
        there = [task for task in TASKS if find(data, (f"{task}.txt",), _PLACES)]
    else:
        there = list(tasks_of(split))
    files = [required(data, (f"{task}.txt",), _PLACES, _PUBLISHED) for task in there or TASKS[:1]]
    return tuple(question for file in files for question in _read_questions(file))


def tasks_of(split: str) -> tuple[str, ...]:
    """Return the tasks of a split, in the official order. Raises UsageError if there is no such split."""
    if split not in SPLITS:
        raise UsageError(f"there is no split {split!r}", where="--split", remedy=f"choose among {', '.join(SPLITS)}")
    return AGGREGATES.get(split, (split,))


def load_answers(file: Path) -> tuple[Answer, ...]:
    """Return the answers of a directory of `TASK.txt`, of one such file, or of a file in the common format.

    A line without the fourth column is a question without an answer.

    Raises:
        QkeditError: there is no file, or a line has another form.
    """
    if file.is_dir():
        files = [file / f"{task}.txt" for task in TASKS if (file / f"{task}.txt").is_file()]
        if not files:
            raise QkeditError("has no TASK.txt, such as existence.txt", where=str(file), remedy=f"give {_COLUMNS}")
        return tuple(answer for one in files for answer in _read_answers(one))
    return _read_answers(file) if file.suffix == ".txt" else read_answers(file)


def answered_splits(questions: Sequence[Question], answers: Sequence[Answer]) -> tuple[str, ...]:
    """Return the tasks with any answers, and the totals whose tasks all have answers."""
    task_of = {question.id: question.fields["task"] for question in questions}
    answered = {task_of.get(answer.id) for answer in answers}
    tasks = tuple(task for task in TASKS if task in answered)
    return tasks + tuple(total for total, parts in AGGREGATES.items() if answered.issuperset(parts))


@Scorer
def score(given: Answered) -> Score:
    """Return the score of one task or one total.

    Args:
        given: answers to questions of the split (those of other tasks are left out). The split is one of SPLITS, by
            default the task of the questions. An image with one unanswered question is not right.

    Raises:
        QkeditError: answers and questions do not match, or there is no such split or parser.
    """
    if given.rule not in (None, "official"):
        raise UsageError(
            f"there is no parser {given.rule!r}", where="--parser", remedy="MME has only the official one"
        )
    there = dict.fromkeys(question.fields["task"] for question in given.questions)
    split = given.split
    if split is None:
        if len(there) != 1:
            raise UsageError("no split is given", where="--split", remedy=f"choose among {', '.join(SPLITS)}")
        (split,) = there
    tasks = tasks_of(split)
    if absent := [task for task in tasks if task not in there]:
        raise QkeditError(
            f"there are no questions of {', '.join(absent)}", where=split, remedy=f"take them from {_PUBLISHED}"
        )
    joined = given.joined_part(lambda question: question.fields["task"] in tasks)
    scores = [_task_score(task, joined) for task in tasks]
    return scores[0] if split in TASKS else _total(split, scores, joined)


def parse(text: str) -> str | None:
    """Parse by MME's rule: yes or else no if the first four characters in lower case contain it, otherwise neither.

    Nothing is stripped, so that four spaces before `yes` hide it.
    """
    start = text.lower()[:4]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else None


def _task_score(task: str, joined: Joined) -> Score:
    pairs = [(question, answer) for question, answer in joined.pairs if question.fields["task"] == task]
    items = []
    for question, answer in pairs:
        parsed, truth = parse(answer.text), str(question.truth)
        # A tab in an answer makes the official script skip the line; its image still counts, as not right.
        counted = "\t" not in answer.text
        items.append(YesNoItem(question.id, parsed, truth, counted and parsed == truth, question.group, counted))
    counted_items = [item for item in items if item.counted]
    right_of_image = Counter({item.group: 0 for item in items})
    right_of_image.update(item.group for item in items if item.right)
    counts = {
        "right": sum(item.right for item in items),
        "images": len(right_of_image),
        "images_right": sum(right == 2 for right in right_of_image.values()),
        **confusion([item for item in counted_items if item.parsed is not None]),
        "other": sum(item.parsed is None for item in counted_items),
    }
    dropped = len(items) - len(counted_items)
    acc = quotient(counts["right"], len(counted_items))
    acc_plus = quotient(counts["images_right"], counts["images"])
    metrics = {
        "acc": acc,
        "acc_plus": acc_plus,
        "score": None if acc is None or acc_plus is None else acc * 100 + acc_plus * 100,
    }
    warnings = list(joined.warnings)
    if dropped:
        warnings.append(f"{dropped} of {len(items)} answers have a tab and are dropped, as the official script does")
    return Score(
        benchmark="mme",
        split=task,
        rule="official",
        n=len(counted_items),
        counts={**counts, **({"dropped": dropped} if dropped else {}), **joined.counts},
        metrics=metrics,
        printed={} if metrics["score"] is None else {"score": repr(metrics["score"])},
        items=tuple(items),
        warnings=(*warnings, *undefined(metrics)),
    )


def _total(split: str, scores: Sequence[Score], joined: Joined) -> Score:
    total: float | None = 0
    for score in scores:
        of_task = score.metrics["score"]
        total = None if total is None or of_task is None else total + of_task
    metrics = {"score": total}
    return Score(
        benchmark="mme",
        split=split,
        rule="official",
        n=sum(score.n for score in scores),
        counts=joined.counts,
        metrics=metrics,
        printed={} if total is None else {"total score": repr(total)},
        items=tuple(item for score in scores for item in score.items),
        warnings=(*joined.warnings, *undefined(metrics)),
    )


@dataclass(frozen=True)
class _Line:
    """One line of a task's file: image, question, truth and, in a file of answers, the answer with all its tabs."""

    columns: list[str]
    file: Path
    number: int

    def wrong(self, what: str) -> QkeditError:
        return QkeditError(what, where=f"{self.file}, line {self.number}", remedy=f"give {_COLUMNS}")


def _lines(file: Path) -> Iterator[_Line]:
    """Yield a task file's lines that are not blank."""
    if file.stem not in TASKS:
        raise QkeditError(
            f"{file.stem!r} is not a task", where=str(file), remedy=f"name the file {' or '.join(TASKS[:2])} … .txt"
        )
    for number, text in enumerate(read_text(file).split("\n"), start=1):
        if not text.strip():
            continue
        line = _Line(text.split("\t", 3), file, number)
        if len(line.columns) < 3:
            raise line.wrong(f"the line has {len(line.columns)} columns")
        if len(text) > LONGEST_TEXT:
            raise line.wrong(f"the line has {len(text)} characters, more than {LONGEST_TEXT}")
        yield line


def _read_questions(file: Path) -> tuple[Question, ...]:
    task, questions = file.stem, []
    of_image: Counter[str] = Counter()
    for line in _lines(file):
        image, prompt, truth = line.columns[:3]
        if truth.lower() not in ("yes", "no"):
            raise line.wrong(f"the truth {truth!r} is neither yes nor no")
        of_image[image] += 1
        if of_image[image] > 2:
            raise line.wrong(f"this is a third question about {image!r}")
        identifier, group = f"{task}/{image}/{of_image[image]}", f"{task}/{image}"
        questions.append(Question(identifier, image, prompt, truth.lower(), group, {"task": task}))
    if not questions:
        raise QkeditError("is empty", where=str(file), remedy=f"take it from {_PUBLISHED}")
    return tuple(questions)


def _read_answers(file: Path) -> tuple[Answer, ...]:
    task, answers = file.stem, []
    of_image: Counter[str] = Counter()
    for line in _lines(file):
        image, prompt, _truth, *answer = line.columns
        of_image[image] += 1
        if answer:
            identifier = f"{task}/{image}/{of_image[image]}"
            answers.append(Answer(identifier, answer[0], line.number, str(file), {"question": prompt}))
    return tuple(answers)
