"""What a run asks: the questions of each split, with the image and the words each is put in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.registry import Benchmark
from qkedit.evaluation.files.records import Answer, Question, Score
from qkedit.evaluation.runs.backend import Ask

# Stands for a benchmark's own question in a prompt of the user's.
QUESTION = "{question}"


@dataclass(frozen=True)
class Part:
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


def parts_of(
    benchmark: Benchmark,
    data: Path,
    splits: Sequence[str] = (),
    *,
    max_new_tokens: int | None = None,
) -> tuple[Part, ...]:
    """Return what there is to ask of a benchmark.

    Args:
        benchmark: which.
        data: the directory with its published files, or one file of questions.
        splits: those to ask; by default all that are in `data`.
        max_new_tokens: longest answer; the benchmark's own by default.

    Raises:
        QkeditError: there is no such split, a file is missing, or what it holds are no questions.
    """
    for split in splits:
        if "/" in split or "\0" in split:
            raise UsageError(
                f"{split!r} is not the name of a split", where="--split", remedy="leave out what is not a name"
            )
    return tuple(
        Part(
            benchmark.name,
            split,
            benchmark.load_questions(data, split),
            max_new_tokens or benchmark.max_new_tokens,
            partial(benchmark.scores, split=split),
            chosen_by_images=benchmark.name == "chair" and split is None,
        )
        for split in splits or benchmark.splits_in(data)
    )


def cut(part: Part, images: Path, limit: int | None) -> Part:
    """Return a part with the questions that are to be asked.

    Args:
        part: with all of its questions.
        images: the directory of the images.
        limit: the first so many; None for all.
    """
    questions = part.questions
    if part.chosen_by_images:
        there = tuple(question for question in questions if _image_file(images, question).is_file())
        # Where none is there, all are missing, and that is said.
        questions = there or questions
    return replace(part, questions=questions[:limit])


def asks_of(part: Part, images: Path, prompt: str | None = None) -> Iterator[Ask]:
    """Yield a part's questions as they are put to a model.

    Args:
        part: whose questions.
        images: the directory of the images, or of one folder for each task, as MME is published.
        prompt: what is asked instead, with `{question}` where the benchmark's own question stands.

    Raises:
        UsageError: the prompt would ask the same of different questions.
    """
    own = {question.prompt for question in part.questions}
    if prompt is not None and QUESTION not in prompt and len(own) > 1:
        raise UsageError(
            f"would ask the same of {len(own)} different questions of {part.name}",
            where="--prompt",
            remedy=f"put {QUESTION} where the question belongs",
        )
    for question in part.questions:
        # No format string: braces in a question or a prompt are themselves.
        text = question.prompt if prompt is None else prompt.replace(QUESTION, question.prompt)
        image = _image_file(images, question) if question.image else None
        yield Ask(part.name, question, text, image, part.max_new_tokens)


def check_images(asks: Sequence[Ask]) -> None:
    """Raise QkeditError that names the first image that is not there."""
    files = dict.fromkeys(ask.image for ask in asks if ask.image is not None)
    missing = [file for file in files if not file.is_file()]
    if missing:
        count = "" if len(missing) == 1 else f", the first of {len(missing)} of {len(files)}"
        raise QkeditError(
            f"the image is not there{count}",
            where=str(missing[0]),
            remedy="name the directory that holds them, or a split with them",
        )


def check_scoring(part: Part) -> None:
    """Score something, so that what scoring lacks is said before hours of answering.

    Raises:
        QkeditError: a language library is not installed, its data are not there …
    """
    for question in part.questions[:1]:
        part.score([question], [Answer(question.id, question.prompt)])


def _image_file(images: Path, question: Question) -> Path:
    task = str(question.fields.get("task", ""))
    places = (images, images / task, images / task / "images") if task else (images,)
    candidates = [place / question.image for place in places]
    return next((file for file in candidates if file.is_file()), candidates[0])
