"""The questions of a search: a user's own data, or scenes of the miniature world.

Questions about one image belong together: an image with all its questions is a unit, and units are drawn into the half
that edits are chosen on or the half that confirms the choice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qkedit.errors import UsageError
from qkedit.evaluation.files.records import Answer, Question, Score
from qkedit.evaluation.runs.backend import EvalRequest
from qkedit.evaluation.runs.tasks import Task, build_requests, check_images, cut
from qkedit.evaluation.statistics.metrics import metrics_of
from qkedit.images import read_image
from qkedit.laboratory.measures import Measure
from qkedit.prompts import CAPTION_PROMPT

if TYPE_CHECKING:
    from PIL.Image import Image

    from qkedit.runtime.generation import LoadedModel

# An answer's text, by the key of its question.
Answers = Mapping[str, str]


class AskedModel(Protocol):
    """A loaded model that answers requests."""

    @property
    def loaded(self) -> LoadedModel:
        """The model and its processor."""
        ...

    def answers(self, requests: Sequence[EvalRequest]) -> Any:
        """Yield pairs of request and reply."""
        ...


class TuningData(Protocol):
    """The questions of a search."""

    @property
    def choice(self) -> Sequence[str]:
        """The units that edits are chosen on."""
        ...

    @property
    def confirmation(self) -> Sequence[str]:
        """The units that confirm the choice."""
        ...

    @property
    def measures(self) -> Mapping[str, Measure]:
        """The measures of the answers, by name."""
        ...

    @property
    def described(self) -> str:
        """The questions in words: `pope, 200 images`."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return everything about the questions that affects answers and scores, as JSON values."""
        ...

    def ask(self, model: AskedModel, units: Sequence[str]) -> Answers:
        """Return the model's answers to all questions about these units."""
        ...

    def scores(self, units: Sequence[str], answers: Answers) -> Mapping[str, Score]:
        """Return the scores of these units by part, with answers to at least all their questions."""
        ...

    def pictures(self, units: Sequence[str], count: int) -> tuple[str, list[Image]]:
        """Return a prompt for descriptions, and images of at most `count` of these units."""
        ...


class BenchmarkData:
    """The questions of one or several benchmarks about the user's images.

    Args:
        tasks: the questions.
        images: the directory of the images.
        prompt: the prompt to use instead of the benchmark's.
        limit: the largest number of questions per task.
        seed: the seed by which images are drawn into the two halves.

    Raises:
        UsageError: there are fewer than four images.
        QkeditError: an image is missing, or answers cannot be scored.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        images: Path,
        *,
        prompt: str | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        self._tasks = [cut(task, images, limit) for task in tasks]
        self._requests = [request for task in self._tasks for request in build_requests(task, images, prompt)]
        check_images(self._requests)
        units = dict.fromkeys(unit_of(request.question) for request in self._requests)
        # By a hash and not in the order of a file, whose first half may be of another kind than its second.
        ordered = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}/{unit}".encode()).hexdigest())
        if len(ordered) < 4:
            raise UsageError(
                f"there are {len(ordered)} images, and each half needs two",
                where="--images",
                remedy="give questions about more images, such as 200",
            )
        self.choice: tuple[str, ...] = tuple(ordered[: len(ordered) // 2])
        self.confirmation: tuple[str, ...] = tuple(ordered[len(ordered) // 2 :])
        self._seed = seed
        self.measures = self._found_measures()

    @property
    def described(self) -> str:
        """The questions in words."""
        names = ", ".join(dict.fromkeys(task.name for task in self._tasks))
        return f"{names}, {len(self.choice) + len(self.confirmation)} images"

    def identity(self) -> dict[str, Any]:
        """See `TuningData`."""
        rows = [
            (one.task, one.id, one.image.name if one.image else "", one.prompt, one.question.truth)
            for one in self._requests
        ]
        rules = {task.name: task.rule for task in self._tasks if task.rule is not None}
        return {
            "tasks": {task.name: task.max_new_tokens for task in self._tasks},
            **({"rules": rules} if rules else {}),
            "questions": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            "halves": self._seed,
        }

    def ask(self, model: AskedModel, units: Sequence[str]) -> Answers:
        """See `TuningData`."""
        wanted = set(units)
        requests = [request for request in self._requests if unit_of(request.question) in wanted]
        return {_key(request.task, request.id): reply.text for request, reply in model.answers(requests)}

    def scores(self, units: Sequence[str], answers: Answers) -> Mapping[str, Score]:
        """See `TuningData`."""
        wanted, found = set(units), {}
        for task in self._tasks:
            questions = [question for question in task.questions if unit_of(question) in wanted]
            given = [Answer(question.id, answers[_key(task.name, question.id)]) for question in questions]
            for score in task.score(questions, given) if questions else ():
                found[_part(score)] = score
        return found

    def pictures(self, units: Sequence[str], count: int) -> tuple[str, list[Image]]:
        """See `TuningData`."""
        wanted = set(units)
        files = dict.fromkeys(
            request.image
            for request in self._requests
            if request.image is not None and unit_of(request.question) in wanted
        )
        return CAPTION_PROMPT, [read_image(file) for file in list(files)[:count]]

    def _found_measures(self) -> Mapping[str, Measure]:
        """Return the measures of answers that repeat their questions; what cannot be scored is refused here."""
        units = (*self.choice, *self.confirmation)
        texts = {_key(request.task, request.id): request.prompt for request in self._requests}
        return {
            f"{part}.{metric}": Measure(f"{part}.{metric}", part, metric, metric, score.benchmark)
            for part, score in self.scores(units, texts).items()
            if score.items
            for metric in metrics_of(score.items, score.benchmark)
        }


def unit_of(question: Question) -> str:
    """Return the unit that a question belongs to: its image, or without an image its group or itself."""
    return question.image or question.group or question.id


def _key(task: str, identifier: str) -> str:
    return f"{task} {identifier}"


def _part(score: Score) -> str:
    return score.benchmark if score.split is None else f"{score.benchmark}.{score.split}"
