"""Ask a model a benchmark's questions, and score the answers.

Questions, images and the identity of the run are checked before a model is loaded, so that errors appear early. Every
answer is written as soon as it arrives. An interrupted run continues with the remaining questions, and a finished one
is scored again without a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from qkedit.evaluation.files.records import Answer, Score
from qkedit.evaluation.files.score_json import score_as_dict
from qkedit.evaluation.runs.backend import Backend, DependsOnImages, EvalRequest
from qkedit.evaluation.runs.run_files import RunFiles
from qkedit.evaluation.runs.tasks import Task, build_requests, check_images, check_scoring, cut

NO_HASH = "the result holds no hash of the weights, since an endpoint does not reveal its weights"

# Called with the number of answered questions and their total.
Watch = Callable[[int, int], None]


class RunOptions(TypedDict, total=False):
    """The options of a run, which are those of `evaluate`."""

    prompt: str | None
    limit: int | None
    overwrite: bool


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        file: the result file.
        scores: one score per split.
        run: the identity of the run, as in the result file.
        warnings: reasons not to trust the scores, in addition to each score's own warnings.
        asked: the number of questions that were asked now, without those answered before.
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
    backend: Backend,
    tasks: Sequence[Task],
    images: Path,
    out: Path,
    *,
    prompt: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    watch: Watch = lambda done, total: None,
) -> Finished:
    """Ask a backend the questions, write the answers, and score them.

    Args:
        backend: the model or endpoint.
        tasks: the questions.
        images: the directory of the images.
        out: the directory of the run; an interrupted run is resumed.
        prompt: the prompt to use instead, with `{question}` as the placeholder for the benchmark's own question.
        limit: the largest number of questions per task.
        overwrite: start over if there are files of another run.
        watch: called with the progress.

    Returns:
        The scores, which are also in `out/result.json`.

    Raises:
        UsageError: the prompt is the same for different questions, or `out` holds something else.
        QkeditError: an image is missing, the model cannot answer, or a file cannot be read or written.
    """
    tasks, requests, identity = _prepared(backend, tasks, images, prompt, limit)
    with RunFiles(out, identity, overwrite=overwrite) as files:
        answered = {task.name: files.answers(task.name) for task in tasks}
        left = [request for request in requests if request.id not in answered[request.task]]
        watch(len(requests) - len(left), len(requests))
        warnings = [] if "weights_sha256" in identity else [NO_HASH]
        if left:
            with backend.session() as session:
                files.begin(session.observed)
                for done, (request, reply) in enumerate(session.answers(left), start=len(requests) - len(left) + 1):
                    answered[request.task][request.id] = files.append(request.task, request.question, reply)
                    watch(done, len(requests))
                warnings += session.warnings
        scores = tuple(score for task in tasks for score in _scores(task, answered[task.name]))
        run = {"model": backend.name, **identity, **(files.observed or {}), **backend.settings}
        finished = Finished(out, scores, run, tuple(warnings), len(left))
        envelope = {"schema": 1, "command": "eval", "status": "done", "warnings": list(warnings)}
        return replace(finished, file=files.write_result(envelope | finished.as_dict()))


def check_run(backend: Backend, tasks: Sequence[Task], images: Path, out: Path, **options: Unpack[RunOptions]) -> None:
    """Raise the errors that `evaluate` would raise for these arguments before it loads a model; write nothing."""
    _, _, identity = _prepared(backend, tasks, images, options.get("prompt"), options.get("limit"))
    with RunFiles(out, identity, overwrite=options.get("overwrite", False)):
        pass


def _prepared(
    backend: Backend, tasks: Sequence[Task], images: Path, prompt: str | None, limit: int | None
) -> tuple[list[Task], list[EvalRequest], dict[str, Any]]:
    """Return the limited tasks, the requests, and the identity of the run, all checked."""
    tasks = [cut(task, images, limit) for task in tasks]
    requests = [request for task in tasks for request in build_requests(task, images, prompt)]
    check_images(requests)
    for task in tasks:
        check_scoring(task)
    return tasks, requests, _identity(backend, tasks, requests, prompt, limit)


def _identity(
    backend: Backend, tasks: Sequence[Task], requests: Sequence[EvalRequest], prompt: str | None, limit: int | None
) -> dict[str, Any]:
    """Return the identity of this run: two runs with the same identity give the same answers."""
    asked: dict[str, list[tuple[str, str, str]]] = {task.name: [] for task in tasks}
    images = [request.image for request in requests if request.image is not None]
    for request in requests:
        asked[request.task].append((request.id, request.image.name if request.image else "", request.prompt))
    return {
        **backend.identity(),
        **(backend.identity_for(images) if isinstance(backend, DependsOnImages) else {}),
        "decoding": {"method": "greedy", "max_new_tokens": {task.name: task.max_new_tokens for task in tasks}},
        "prompt": prompt,
        "limit": limit,
        "questions": {
            name: {"n": len(rows), "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}
            for name, rows in asked.items()
        },
    }


def _scores(task: Task, answers: Mapping[str, Answer]) -> Sequence[Score]:
    return task.score(task.questions, [answers[question.id] for question in task.questions])
