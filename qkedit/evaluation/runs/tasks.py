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
        benchmark: the benchmark's name, such as `pope`.
        split: the split; None without splits, or if all are asked together.
        questions: the questions.
        max_new_tokens: the maximum length of an answer.
        score: returns the scores of answers to these questions.
        chosen_by_images: whether to ask only the questions whose image exists, since the truth covers far more images
            than a user has (CHAIR without a split covers all of COCO).
        rule: the parser or variant of the scores; None for the benchmark's own.
    """

    benchmark: str
    split: str | None
    questions: tuple[Question, ...]
    max_new_tokens: int
    score: Callable[[Sequence[Question], Sequence[Answer]], Sequence[Score]]
    chosen_by_images: bool = False
    rule: str | None = None

    @property
    def name(self) -> str:
        """`benchmark.split`, or the benchmark alone."""
        return self.benchmark if self.split is None else f"{self.benchmark}.{self.split}"


def tasks_of(
    benchmark: Benchmark,
    data: Path,
    splits: Sequence[str] = (),
    *,
    rule: str | None = None,
    max_new_tokens: int | None = None,
) -> tuple[Task, ...]:
    """Return the tasks of a benchmark.

    Args:
        benchmark: the benchmark.
        data: the directory with its published files, or one file of questions.
        splits: the splits to ask; by default all splits in `data`.
        rule: the parser or variant for the scores; by default the benchmark's own.
        max_new_tokens: the maximum length of an answer; by default the benchmark's own.

    Raises:
        QkeditError: there is no such split or rule, a file is missing, or it does not hold questions.
    """
    for split in splits:
        if "/" in split or "\0" in split:
            raise UsageError(
                f"{split!r} is not the name of a split", where="--split", remedy="use a name without a slash"
            )
    return tuple(
        Task(
            benchmark.name,
            split,
            benchmark.load_questions(data, split, rule),
            max_new_tokens or benchmark.max_new_tokens,
            partial(benchmark.scores, split=split, rule=rule),
            chosen_by_images=benchmark.takes_shown_images(split),
            rule=rule,
        )
        for split in splits or benchmark.splits_in(data)
    )


def cut(task: Task, images: Path, limit: int | None) -> Task:
    """Return a task reduced to the questions to ask.

    Args:
        task: the task with all its questions.
        images: the directory of the images.
        limit: the number of questions to keep from the start; None for all.
    """
    questions = task.questions
    if task.chosen_by_images:
        there = tuple(question for question in questions if _image_file(images, question).is_file())
        # If no image exists, all are kept, so that the error names them as missing.
        questions = there or questions
    return replace(task, questions=questions[:limit])


def build_requests(task: Task, images: Path, prompt: str | None = None) -> Iterator[EvalRequest]:
    """Yield the requests to a model for the questions of a task.

    Args:
        task: the task.
        images: the directory of the images, or of one folder per task, as MME is published.
        prompt: the prompt to use instead, with `{question}` as the placeholder for the benchmark's own question.

    Raises:
        UsageError: the prompt would be the same for different questions.
    """
    own = {question.prompt for question in task.questions}
    if prompt is not None and QUESTION not in prompt and len(own) > 1:
        raise UsageError(
            f"would be the same for {len(own)} different questions of {task.name}",
            where="--prompt",
            remedy=f"put {QUESTION} where the question belongs",
        )
    for question in task.questions:
        # Without a format string: braces in a question or a prompt have no meaning.
        text = question.prompt if prompt is None else prompt.replace(QUESTION, question.prompt)
        image = _image_file(images, question) if question.image else None
        yield EvalRequest(task.name, question, text, image, task.max_new_tokens)


def check_images(requests: Sequence[EvalRequest]) -> None:
    """Raise QkeditError, which names the first missing image."""
    files = dict.fromkeys(request.image for request in requests if request.image is not None)
    missing = [file for file in files if not file.is_file()]
    if missing:
        count = "" if len(missing) == 1 else f" ({len(missing)} of {len(files)} images are missing)"
        raise QkeditError(
            f"the image does not exist{count}",
            where=str(missing[0]),
            remedy="name the directory that holds them, or a split whose images are there",
        )


def check_scoring(task: Task) -> None:
    """Score a sample, so that missing prerequisites of scoring are reported before hours of answering.

    Raises:
        QkeditError: a language library or its data are missing, …
    """
    for question in task.questions[:1]:
        task.score([question], [Answer(question.id, question.prompt)])


def _image_file(images: Path, question: Question) -> Path:
    task = str(question.fields.get("task", ""))
    places = (images, images / task, images / task / "images") if task else (images,)
    candidates = [place / question.image for place in places]
    return next((file for file in candidates if file.is_file()), candidates[0])
