"""Questions about scenes: as in POPE (arXiv 2305.10355), and about colours and numbers.

POPE's absent objects are random ones, popular ones, or adversarial ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from qkedit.demo.captions import NUMBERS, plural
from qkedit.demo.scenes import Scene, question

SPLITS = ("random", "popular", "adversarial")
MOST_PER_SCENE = 3


def pope_questions(scenes: Sequence[Scene], split: str, seed: int = 0) -> list[dict[str, Any]]:
    """Return balanced yes/no questions in POPE's own rows: `question_id`, `image`, `text` and `label`.

    Each scene has questions about up to three objects it shows and as many absent ones. The absent ones are drawn at
    random, or are those that the given scenes show most often (popular), or most often together with this scene's
    objects (adversarial). The questions about objects that the scene shows are the same in all three splits.

    Raises:
        ValueError: the split is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"{split!r} is not a split; there are {', '.join(SPLITS)}")
    popularity = Counter(kind for scene in scenes for kind in scene.kinds)
    together = Counter(pair for scene in scenes for pair in permutations(scene.kinds, 2))
    rows: list[dict[str, Any]] = []
    for scene in scenes:
        generator = np.random.default_rng([seed, scene.number])
        shown = [scene.kinds[i] for i in generator.permutation(len(scene.kinds))[:MOST_PER_SCENE]]
        absent = [kind for kind in scene.world.kinds if kind not in scene.kinds]
        absent = [absent[i] for i in generator.permutation(len(absent))]  # ties fall at random
        if split == "popular":
            absent.sort(key=lambda kind: -popularity[kind])
        elif split == "adversarial":
            absent.sort(key=lambda kind: -sum(together[kind, other] for other in scene.kinds))
        for present, missing in zip(shown, absent, strict=False):
            for kind, label in ((present, "yes"), (missing, "no")):
                rows.append(
                    {
                        "question_id": len(rows) + 1,
                        "image": image_file(scene),
                        "text": question(kind),
                        "label": label,
                    }
                )
    return rows


def attribute_questions(scene: Scene) -> list[tuple[str, str]]:
    """Return a question about the colour of each object, and about the number of each that may occur in groups.

    Each has its answer, one word. There are none in a world whose captions name neither.
    """
    asked = []
    for thing in scene.objects:
        named = plural(thing.kind) if thing.count > 1 else thing.kind
        if thing.colour:
            asked.append((f"What colour {'are' if thing.count > 1 else 'is'} the {named}?", thing.colour.capitalize()))
        if thing.kind in scene.world.countable:
            asked.append((f"How many {plural(thing.kind)} are there?", NUMBERS[thing.count].capitalize()))
    return asked


def image_file(scene: Scene) -> str:
    """Return the file name of a scene's image."""
    return f"scene_{scene.number:06d}.png"
