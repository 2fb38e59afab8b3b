"""Generate random items of a model that is sometimes right."""

from __future__ import annotations

import random

from qkedit.evaluation.files.records import CaptionItem, YesNoItem


def yes_no_items(count: int, seed: int, *, per_group: int = 1, accuracy: float = 0.8) -> list[YesNoItem]:
    """Generate yes-or-no items, half of them true; those of a hard group are answered worse."""
    generator = random.Random(seed)
    items = []
    for number in range(count):
        group = number // per_group
        truth = "yes" if number % 2 else "no"
        chance = accuracy - (0.3 if group % 3 == 0 else 0.0)
        right = generator.random() < chance
        parsed = truth if right else ("no" if truth == "yes" else "yes")
        items.append(YesNoItem(str(number), parsed, truth, right, f"image {group}" if per_group > 1 else ""))
    return items


def caption_items(count: int, seed: int, *, hallucination: float = 0.15) -> list[CaptionItem]:
    """Generate captions of images that show two to five of ten objects."""
    generator = random.Random(seed)
    kinds = [f"kind {number}" for number in range(10)]
    items = []
    for number in range(count):
        truth = tuple(random.Random(f"truth {number}").sample(kinds, 2 + number % 4))
        covered = tuple(kind for kind in truth if generator.random() < 0.7)
        hallucinated = tuple(kind for kind in kinds if kind not in truth and generator.random() < hallucination)
        found = covered + hallucinated
        items.append(CaptionItem(str(number), found, hallucinated, covered, truth, 8 + 3 * len(found)))
    return items
