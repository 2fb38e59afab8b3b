"""The evaluation set of all arms: captions of the demo's scenes, and yes/no questions sampled as in POPE.

A question that several splits share is asked once. Scenes are generated from their seed and numbers, so a worker
process needs only a `SceneRange`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qkedit.demo.questions import SPLITS, image_file, pope_questions
from qkedit.demo.scenes import CAPTION_PROMPT, Scene, make_scenes
from qkedit.demo.scenes import HELD_OUT_SEED as HELD_OUT_SEED
from qkedit.demo.worlds import DEFAULT_WORLD, world_named
from qkedit.errors import UsageError, counted
from qkedit.evaluation.files.records import Question


@dataclass(frozen=True)
class SceneRange:
    """A range of scenes: `count` scenes of `seed` in a world, beginning with number `first`."""

    count: int
    seed: int = HELD_OUT_SEED
    first: int = 0
    world: str = DEFAULT_WORLD.name

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
        world_named(self.world)

    def halves(self) -> tuple[SceneRange, SceneRange]:
        """Return the first half, for the choice, and the second half, for the confirmation."""
        half = self.count // 2
        return (
            replace(self, count=half),
            replace(self, count=self.count - half, first=self.first + half),
        )

    def as_dict(self) -> dict[str, int | str]:
        """Return the range as it is recorded."""
        return {"count": self.count, "seed": self.seed, "first": self.first, "world": self.world}


@dataclass(frozen=True, eq=False)
class EvalSet:
    """Scenes with their questions.

    Attributes:
        scenes: the scenes.
        captions: one question per scene; its ground truth is the kinds of objects in the scene.
        splits: POPE's questions, by split.
        asked: the distinct yes/no questions of all splits: the scene's position and the prompt, scene by scene.
    """

    scenes: tuple[Scene, ...]
    captions: tuple[Question, ...]
    splits: Mapping[str, tuple[Question, ...]]
    asked: tuple[tuple[int, str], ...]

    def digest(self) -> str:
        """Return a SHA-256 of all pictures, questions and ground truths: equal evaluation sets have equal digests."""
        digest = hashlib.sha256()
        for scene in self.scenes:
            digest.update(scene.image.tobytes() + scene.depth.tobytes())
        every = [*self.captions, *(question for split in self.splits.values() for question in split)]
        digest.update(json.dumps([(q.id, q.image, q.prompt, q.truth) for q in every]).encode())
        return digest.hexdigest()


def make_eval_set(scenes: SceneRange) -> EvalSet:
    """Return the evaluation set for these scenes; popular and adversarial objects are counted only over them."""
    shown = tuple(make_scenes(scenes.count, scenes.seed, scenes.first, world_named(scenes.world)))
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
