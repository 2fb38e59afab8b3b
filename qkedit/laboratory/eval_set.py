"""What every arm is asked: captions of the demo's scenes, and yes/no questions as POPE draws them.

A question that several splits share is asked once. Scenes are made from their seed and numbers, so that a process
that is to answer needs no more than an `SceneRange`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from qkedit.demo.questions import SPLITS, image_file, pope_questions
from qkedit.demo.scenes import CAPTION_PROMPT, Scene, make_scenes
from qkedit.errors import UsageError, counted
from qkedit.evaluation.files.records import Question

# Scenes that the demo model has seen neither in training nor in validation.
HELD_OUT_SEED = 2_000_000


@dataclass(frozen=True)
class SceneRange:
    """Which scenes: `count` of `seed`, from number `first`."""

    count: int
    seed: int = HELD_OUT_SEED
    first: int = 0

    def __post_init__(self) -> None:
        """Check the numbers. Raises UsageError."""
        if self.count < 2:
            raise UsageError(
                f"{counted(self.count, 'scene')} cannot be resampled",
                where="--scenes",
                remedy="give 2 or more, such as 500",
            )
        if self.seed < 0:
            raise UsageError(f"{self.seed} is negative", where="--scene-seed", remedy="give 0 or more")

    def halves(self) -> tuple[SceneRange, SceneRange]:
        """Return the first half, to choose on, and the second, to confirm on."""
        half = self.count // 2
        return (
            SceneRange(half, self.seed, self.first),
            SceneRange(self.count - half, self.seed, self.first + half),
        )


@dataclass(frozen=True, eq=False)
class EvalSet:
    """Scenes and all that is asked about them.

    Attributes:
        scenes: what is shown.
        captions: one question a scene, whose truth are the kinds it shows.
        splits: POPE's questions, by split.
        asked: the distinct yes/no questions of all splits: the scene's position and the prompt, scene by scene.
    """

    scenes: tuple[Scene, ...]
    captions: tuple[Question, ...]
    splits: Mapping[str, tuple[Question, ...]]
    asked: tuple[tuple[int, str], ...]

    def digest(self) -> str:
        """Return a SHA-256 of all pictures, questions and truths: equal evaluation sets ask the same."""
        digest = hashlib.sha256()
        for scene in self.scenes:
            digest.update(scene.image.tobytes() + scene.depth.tobytes())
        every = [*self.captions, *(question for split in self.splits.values() for question in split)]
        digest.update(json.dumps([(q.id, q.image, q.prompt, q.truth) for q in every]).encode())
        return digest.hexdigest()


def make_eval_set(scenes: SceneRange) -> EvalSet:
    """Return the evaluation set about these scenes; what is popular or adversarial is counted over them alone."""
    shown = tuple(make_scenes(scenes.count, scenes.seed, scenes.first))
    splits = {
        split: tuple(
            Question(
                id=str(row["question_id"]),
                image=row["image"],
                prompt=row["text"],
                truth=row["label"],
                group=row["image"],
            )
            for row in pope_questions(shown, split)
        )
        for split in SPLITS
    }
    captions = tuple(
        Question(
            id=str(scene.number),
            image=image_file(scene),
            prompt=CAPTION_PROMPT,
            truth=scene.kinds,
            group=image_file(scene),
        )
        for scene in shown
    )
    position = {question.image: place for place, question in enumerate(captions)}
    asked = {(position[question.image], question.prompt) for split in splits.values() for question in split}
    return EvalSet(shown, captions, splits, tuple(sorted(asked)))
