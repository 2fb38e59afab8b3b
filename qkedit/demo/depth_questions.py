"""Questions about depth and size in scenes: which of two objects is nearest, farthest, smallest or largest.

DSCR's paper asks such questions about objects that overlap or are about equally far away; its 50 images are not
published. Here each scene gives one question of each kind, about the two objects that are the hardest to tell apart by
that rule: boxes that overlap go before others, and among equals the pair with the smallest difference in depth. Each
kind of question has its truth as often in the first place as in the second, so that every fixed rule has the chance
level, one half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from qkedit.demo.questions import image_file
from qkedit.demo.scenes import Scene, SceneObject

# Whoever sees both objects can answer: neither is mostly hidden or a group, and they differ.
LEAST_VISIBLE = 0.5
LEAST_DEPTH = 0.02
LEAST_SIZE = 1.1

_Amount = Callable[[SceneObject], float]


@dataclass(frozen=True)
class DepthQuestion:
    """One question with two choices.

    Attributes:
        scene: the number of the scene.
        image: the file name of its image.
        order: one of `ORDERS`.
        choices: the two kinds of objects, as the question names them.
        truth: the right one.
        overlap: whether their boxes overlap.
        distance: the difference of their depths, 0 to 1.
    """

    scene: int
    image: str
    order: str
    choices: tuple[str, str]
    truth: str
    overlap: bool
    distance: float

    @property
    def id(self) -> str:
        """Unique among the questions about scenes of one seed."""
        return f"{self.scene} {self.order}"

    @property
    def text(self) -> str:
        """The question."""
        first, second = self.choices
        return f"Which is {self.order}, the {first} or the {second}?"

    def as_row(self) -> dict[str, object]:
        """Return the row of a file that `qkedit eval --benchmark choice` reads."""
        return {
            "id": self.id,
            "image": self.image,
            "question": self.text,
            "choices": list(self.choices),
            "truth": self.truth,
        }


def _depth(thing: SceneObject) -> float:
    return thing.depth


def _side(thing: SceneObject) -> float:
    left, _, right, _ = thing.box
    return right - left


# What is compared, and whether the smaller amount is the answer.
ORDERS: dict[str, tuple[_Amount, bool]] = {
    "nearest": (_depth, True),
    "farthest": (_depth, False),
    "smallest": (_side, True),
    "largest": (_side, False),
}


def depth_questions(scenes: Sequence[Scene], orders: Sequence[str] = tuple(ORDERS)) -> list[DepthQuestion]:
    """Return at most one question of each order per scene, scene by scene."""
    found: list[DepthQuestion] = []
    asked = dict.fromkeys(orders, 0)
    for scene in scenes:
        for order in orders:
            pair = _hardest_pair(scene, order)
            if pair is None:
                continue
            amount, is_least = ORDERS[order]
            right, wrong = sorted(pair, key=amount, reverse=not is_least)
            choices = (right.kind, wrong.kind) if asked[order] % 2 == 0 else (wrong.kind, right.kind)
            asked[order] += 1
            found.append(
                DepthQuestion(
                    scene.number,
                    image_file(scene),
                    order,
                    choices,
                    right.kind,
                    _overlap(right, wrong),
                    abs(right.depth - wrong.depth),
                )
            )
    return found


def _hardest_pair(scene: Scene, order: str) -> tuple[SceneObject, SceneObject] | None:
    """Return the two objects to ask about; None if no two can be told apart."""
    shown = [thing for thing in scene.objects if thing.visible >= LEAST_VISIBLE and thing.count == 1]
    pairs = [pair for pair in combinations(shown, 2) if _differ(*pair, order)]
    return min(pairs, key=lambda pair: (not _overlap(*pair), abs(pair[0].depth - pair[1].depth)), default=None)


def _differ(one: SceneObject, other: SceneObject, order: str) -> bool:
    if ORDERS[order][0] is _depth:
        return abs(one.depth - other.depth) >= LEAST_DEPTH
    low, high = sorted((_side(one), _side(other)))
    return high / low >= LEAST_SIZE


def _overlap(one: SceneObject, other: SceneObject) -> bool:
    return all(
        max(one.box[place], other.box[place]) < min(one.box[place + 2], other.box[place + 2]) for place in (0, 1)
    )
