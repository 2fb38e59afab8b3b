"""A benchmark of a few questions, and a model that records its questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks import pope
from qkedit.evaluation.files.records import Answer, Question, Score
from qkedit.evaluation.runs.backend import EvalRequest, Reply
from qkedit.evaluation.runs.tasks import Task


def questions(count: int = 6) -> tuple[Question, ...]:
    """Return two questions per image; the first of each pair is true."""
    return tuple(
        Question(
            str(number),
            f"{number // 2}.png",
            f"Is there a thing of kind {number} in the image?",
            ("yes", "no")[number % 2],
            group=f"{number // 2}.png",
        )
        for number in range(count)
    )


def task(count: int = 6, split: str = "random") -> Task:
    def score(asked: Sequence[Question], answers: Sequence[Answer]) -> tuple[Score, ...]:
        return (pope.score(asked, answers, split=split),)

    return Task("pope", split, questions(count), 16, score)


def write_images(directory: Path, count: int = 3) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(directory / f"{number}.png")
    return directory


class Oracle:
    """A model that answers by a rule, and records its questions and the number of preparations.

    Args:
        fails_at: the number of answers after which it fails.
        identity: the values that distinguish it from other models.
        observed: the values that are known once it is ready.
    """

    name = "oracle"
    settings: Mapping[str, Any] = {"batch_size": 1}

    def __init__(
        self,
        *,
        answer: Callable[[EvalRequest], str | Reply] = lambda request: "Yes.",
        fails_at: int | None = None,
        identity: Mapping[str, Any] | None = None,
        observed: Mapping[str, Any] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.asked: list[EvalRequest] = []
        self.sessions = 0
        self.warnings = warnings
        self.observed = observed or {"attention": "sdpa"}
        self._answer, self._fails_at, self._identity = answer, fails_at, identity or {"weights_sha256": "a" * 64}

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    @contextmanager
    def session(self) -> Iterator[Oracle]:
        self.sessions += 1
        yield self

    def answers(self, requests: Sequence[EvalRequest]) -> Iterator[tuple[EvalRequest, Reply]]:
        for request in requests:
            if len(self.asked) == self._fails_at:
                raise QkeditError("no more", where="oracle")
            self.asked.append(request)
            answer = self._answer(request)
            yield request, Reply(answer) if isinstance(answer, str) else answer
