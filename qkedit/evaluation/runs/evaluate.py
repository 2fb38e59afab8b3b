"""Let a model answer a benchmark's questions, and score the answers.

What can fail early fails early: questions, images and the identity of the run are checked before a model is loaded.
Every answer is written down as it comes; a run that was interrupted asks what is left, and one that was finished is
scored again without a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qkedit.evaluation.files.records import Answer, Score
from qkedit.evaluation.files.score_json import score_as_dict
from qkedit.evaluation.runs.backend import Answerer, Ask
from qkedit.evaluation.runs.run_files import RunFiles
from qkedit.evaluation.runs.tasks import Part, asks_of, check_images, check_scoring, cut

NO_HASH = "the result holds no hash of the weights, since an endpoint does not tell which it serves"

# Told how many questions are answered, and of how many.
Watch = Callable[[int, int], None]


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
    parts = [cut(part, images, limit) for part in parts]
    asks = [ask for part in parts for ask in asks_of(part, images, prompt)]
    check_images(asks)
    for part in parts:
        check_scoring(part)
    identity = _identity(answerer, parts, asks, prompt, limit)
    with RunFiles(out, identity, overwrite=overwrite) as files:
        answered = {part.name: files.answers(part.name) for part in parts}
        left = [ask for ask in asks if ask.id not in answered[ask.part]]
        watch(len(asks) - len(left), len(asks))
        warnings = [] if "weights_sha256" in identity else [NO_HASH]
        if left:
            with answerer.session() as session:
                files.begin(session.observed)
                for done, (ask, reply) in enumerate(session.answers(left), start=len(asks) - len(left) + 1):
                    answered[ask.part][ask.id] = files.append(ask.part, ask.question, reply)
                    watch(done, len(asks))
                warnings += session.warnings
        scores = tuple(score for part in parts for score in _scores(part, answered[part.name]))
        run = {"model": answerer.name, **identity, **(files.observed or {}), **answerer.settings}
        finished = Finished(out, scores, run, tuple(warnings), len(left))
        envelope = {"schema": 1, "command": "eval", "status": "done", "warnings": list(warnings)}
        return replace(finished, file=files.write_result(envelope | finished.as_dict()))


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
            name: {"n": len(rows), "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}
            for name, rows in asked.items()
        },
    }


def _scores(part: Part, answers: Mapping[str, Answer]) -> Sequence[Score]:
    return part.score(part.questions, [answers[question.id] for question in part.questions])
