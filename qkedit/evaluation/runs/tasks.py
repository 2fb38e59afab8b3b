"""The tasks of a run: the questions of each split, with their images and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.registry import Benchmark
from qkedit.evaluation.files.records import Answer, Question, Score
from qkedit.evaluation.runs.backend import EvalRequest

# The placeholder for the benchmark's own question in a user's prompt.
QUESTION = "{question}"


@dataclass(frozen=True)
class Task:
    """The questions of one split of one benchmark.

    Attributes:
        benchmark: its name, such as `pope`.
        split: None where there are none, or all are asked at once.
        questions: what is asked.
        max_new_tokens: longest answer.
        score: the scores of answers to these questions.
        chosen_by_images: whether only those are asked whose image is there, as the truth is known of far more images
            than anybody shows (CHAIR without a split: of all of COCO).
    """

    benchmark: str
    split: str | None
    questions: tuple[Question, ...]
    max_new_tokens: int
    score: Callable[[Sequence[Question], Sequence[Answer]], Sequence[Score]]
    chosen_by_images: bool = False

    @property
    def name(self) -> str:
        """`benchmark.split`, or the benchmark alone."""
        return self.benchmark if self.split is None else f"{self.benchmark}.{self.split}"


def tasks_of(
    benchmark: Benchmark,
    data: Path,
    splits: Sequence[str] = (),
    *,
    max_new_tokens: int | None = None,
) -> tuple[Task, ...]:
    """Return the tasks of a benchmark.

    Args:
        benchmark: which.
        data: the directory with its published files, or one file of questions.
        splits: those to ask; by default all that are in `data`.
        max_new_tokens: longest answer; the benchmark's own by default.

    Raises:
        QkeditError: there is no such split, a file is missing, or it does not hold questions.
    """
    for split in splits:
        if "/" in split or "\0" in split:
            raise UsageError(
                f"{split!r} is not the name of a split", where="--split", remedy="leave out what is not a name"
            )
    return tuple(
        Task(
            benchmark.name,
            split,
            benchmark.load_questions(data, split),
            max_new_tokens or benchmark.max_new_tokens,
            partial(benchmark.scores, split=split),
            chosen_by_images=benchmark.takes_shown_images(split),
        )
        for split in splits or benchmark.splits_in(data)
    )


def cut(task: Task, images: Path, limit: int | None) -> Task:
    """Return a task with the questions that are to be asked.

    Args:
        task: with all of its questions.
        images: the directory of the images.
        limit: the first so many; None for all.
    """
    questions = task.questions
    if task.chosen_by_images:
        there = tuple(question for question in questions if _image_file(images, question).is_file())
        # Where none is there, all are missing, and that is said.
        questions = there or questions
    return replace(task, questions=questions[:limit])


def build_requests(task: Task, images: Path, prompt: str | None = None) -> Iterator[EvalRequest]:
    """Yield the questions of a task as they are put to a model.

    Args:
        task: whose questions.
        images: the directory of the images, or of one folder for each task, as MME is published.
        prompt: what is asked instead, with `{question}` where the benchmark's own question is.

    Raises:
        UsageError: the prompt would ask the same of different questions.
    """
    own = {question.prompt for question in task.questions}
    if prompt is not None and QUESTION not in prompt and len(own) > 1:
        raise UsageError(
            f"would ask the same of {len(own)} different questions of {task.name}",
            where="--prompt",
            remedy=f"put {QUESTION} where the question belongs",
        )
    for question in task.questions:
        # No format string: braces in a question or a prompt are themselves.
        text = question.prompt if prompt is None else prompt.replace(QUESTION, question.prompt)
        image = _image_file(images, question) if question.image else None
        yield EvalRequest(task.name, question, text, image, task.max_new_tokens)


def check_images(requests: Sequence[EvalRequest]) -> None:
    """Raise QkeditError that names the first image that is not there."""
    files = dict.fromkeys(request.image for request in requests if request.image is not None)
    missing = [file for file in files if not file.is_file()]
    if missing:
        count = "" if len(missing) == 1 else f", the first of {len(missing)} of {len(files)}"
        raise QkeditError(
            f"the image is not there{count}",
            where=str(missing[0]),
            remedy="name the directory that holds them, or a split with them",
        )


def check_scoring(task: Task) -> None:
    """Score something, so that what scoring lacks is said before hours of answering.

    Raises:
        QkeditError: a language library is not installed, its data are not there …
    """
    for question in task.questions[:1]:
        task.score([question], [Answer(question.id, question.prompt)])


def _image_file(images: Path, question: Question) -> Path:
    task = str(question.fields.get("task", ""))
    places = (images, images / task, images / task / "images") if task else (images,)
    candidates = [place / question.image for place in places]
    return next((file for file in candidates if file.is_file()), candidates[0])
