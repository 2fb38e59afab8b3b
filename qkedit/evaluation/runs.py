"""Let a model answer a benchmark's questions, and score the answers.

What can fail early fails early: questions, images and the identity of the run are checked before a model is loaded.
Every answer is written down as it comes; a run that was interrupted asks what is left, and one that was finished is
scored again without a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.answering import Answerer, Ask
from qkedit.evaluation.records import Answer, Question, Score, score_as_dict
from qkedit.evaluation.run_files import RunFiles

# Stands for a benchmark's own question in a prompt of the user's.
QUESTION = "{question}"

# Told how many questions are answered, and of how many.
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Part:
    """The questions of one split of one benchmark.

    Attributes:
        benchmark: its name, such as `pope`.
        split: None where there are none, or all are asked at once.
        questions: what is asked.
        max_new_tokens: longest answer.
        score: the scores of answers to these questions.
    """

    benchmark: str
    split: str | None
    questions: tuple[Question, ...]
    max_new_tokens: int
    score: Callable[[Sequence[Question], Sequence[Answer]], Sequence[Score]]

    @property
    def name(self) -> str:
        """`benchmark.split`, or the benchmark alone."""
        return self.benchmark if self.split is None else f"{self.benchmark}.{self.split}"


@dataclass(frozen=True)
class Finished:
    """A run that is over.

    Attributes:
        file: where the result was written.
        scores: one for each split.
        run: what was asked of what, as the result file says it.
        warnings: what the reader should know before trusting the scores, beyond what each says itself.
        asked: questions that were asked now, as opposed to those answered before.
    """

    file: Path
    scores: tuple[Score, ...]
    run: Mapping[str, Any]
    warnings: tuple[str, ...]
    asked: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of the result file."""
        return {"results": [score_as_dict(score) for score in self.scores], "run": dict(self.run)}


def evaluate(
    answerer: Answerer,
    parts: Sequence[Part],
    images: Path,
    out: Path,
    *,
    prompt: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    watch: Watch = lambda done, total: None,
) -> Finished:
    """Ask, write down and score.

    Args:
        answerer: what is asked.
        parts: what it is asked.
        images: the directory of the images.
        out: the directory of the run; one that was interrupted is taken up again.
        prompt: what is asked instead, with `{question}` where the benchmark's own question stands.
        limit: ask the first so many questions of each part.
        overwrite: begin anew where another run's files are.
        watch: told of progress.

    Returns:
        The scores, which are also in `out/result.json`.

    Raises:
        UsageError: the prompt asks the same of different questions, or `out` holds something else.
        QkeditError: an image is missing, the model cannot answer, or a file cannot be read or written.
    """
    parts = [replace(part, questions=part.questions[:limit]) for part in parts]
    asks = [ask for part in parts for ask in _asks(part, images, prompt)]
    _check_images(asks)
    identity = _identity(answerer, parts, asks, prompt, limit)
    with RunFiles(out, identity, overwrite=overwrite) as files:
        answered = {part.name: files.answers(part.name) for part in parts}
        left = [ask for ask in asks if ask.id not in answered[ask.part]]
        watch(len(asks) - len(left), len(asks))
        warnings: list[str] = []
        if left:
            questions = {(part.name, question.id): question for part in parts for question in part.questions}
            with answerer.session() as session:
                files.begin(session.observed)
                for done, (ask, text) in enumerate(session.answers(left), start=len(asks) - len(left) + 1):
                    question = questions[ask.part, ask.id]
                    row = {"id": ask.id, "image": question.image, "question": question.prompt, "answer": text}
                    files.append(ask.part, row)
                    answered[ask.part][ask.id] = Answer(ask.id, text)
                    watch(done, len(asks))
                warnings += session.warnings
        scores = tuple(score for part in parts for score in _scores(part, answered[part.name]))
        run = {"model": answerer.name, **identity, **(files.observed or {}), **answerer.settings}
        finished = Finished(out, scores, run, tuple(warnings), len(left))
        envelope = {"schema": 1, "command": "eval", "status": "done", "warnings": list(warnings)}
        return replace(finished, file=files.write_result(envelope | finished.as_dict()))


def _asks(part: Part, images: Path, prompt: str | None) -> Iterator[Ask]:
    """Yield the questions as they are put to a model."""
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
        yield Ask(part.name, question.id, text, image, part.max_new_tokens)


def _image_file(images: Path, question: Question) -> Path:
    """Return where a question's image is: in the directory, or in its task's folder there, as MME is published."""
    task = str(question.fields.get("task", ""))
    places = (images, images / task, images / task / "images") if task else (images,)
    candidates = [place / question.image for place in places]
    return next((file for file in candidates if file.is_file()), candidates[0])


def _check_images(asks: Sequence[Ask]) -> None:
    files = dict.fromkeys(ask.image for ask in asks if ask.image is not None)
    missing = [file for file in files if not file.is_file()]
    if missing:
        count = "" if len(missing) == 1 else f", the first of {len(missing)} of {len(files)}"
        raise QkeditError(
            f"the image is not there{count}", where=str(missing[0]), remedy="name the directory of the images"
        )


def _identity(
    answerer: Answerer, parts: Sequence[Part], asks: Sequence[Ask], prompt: str | None, limit: int | None
) -> dict[str, Any]:
    """Return what makes this run the one it is: two runs with the same identity give the same answers."""
    asked: dict[str, list[tuple[str, str, str]]] = {part.name: [] for part in parts}
    for ask in asks:
        asked[ask.part].append((ask.id, ask.image.name if ask.image else "", ask.prompt))
    return {
        **answerer.identity(),
        "decoding": {"method": "greedy", "max_new_tokens": {part.name: part.max_new_tokens for part in parts}},
        "prompt": prompt,
        "limit": limit,
        "questions": {
            name: {
                "n": len(rows),
                "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            }
            for name, rows in asked.items()
        },
    }


def _scores(part: Part, answers: Mapping[str, Answer]) -> Sequence[Score]:
    return part.score(part.questions, [answers[question.id] for question in part.questions])
