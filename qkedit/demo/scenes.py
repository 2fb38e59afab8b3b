"""Seeded synthetic scenes with their ground truth: where each object is, how far away, and how much of it is visible.

    >>> from qkedit.demo.scenes import make_scene
    >>> scene = make_scene(seed=0, number=3)
    >>> scene.caption
    'A lake with a boat, a duck and a fish.'

A scene is a function of its seed and number alone, so any scene can be generated again without the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qkedit.demo.drawing import Picture, draw
from qkedit.demo.world import IMAGE_SIZE, KINDS, THEMES, draw_company, place
from qkedit.prompts import CAPTION_PROMPT

__all__ = [
    "CAPTION_PROMPT",
    "HELD_OUT_SEED",
    "IMAGE_SIZE",
    "KINDS",
    "THEMES",
    "Scene",
    "SceneObject",
    "make_scene",
    "make_scenes",
    "mention_spans",
    "mentions",
    "question",
    "with_article",
]

# Scenes that are neither in the training nor in the validation set of the demo model.
HELD_OUT_SEED = 2_000_000


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene.

    Attributes:
        kind: one of `KINDS`.
        box: left, top, right and bottom in pixels, including hidden parts; right and bottom are exclusive.
        depth: 0 at the front, 1 at the back.
        visible: the share of its pixels that nothing covers.
        contrast: its opacity, 0 to 1.
    """

    kind: str
    box: tuple[int, int, int, int]
    depth: float
    visible: float
    contrast: float


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and its ground truth.

    Attributes:
        number: the scene's number for its seed.
        theme: the place, one of `THEMES`.
        objects: from the front to the back; each kind at most once.
        image: uint8 `[H, W, 3]`.
        depth: float32 `[H, W]`, 0 at the front and 1 at the back.
        instances: int8 `[H, W]`, the object (by position in `objects`) that a pixel shows, −1 for the ground.
    """

    number: int
    theme: str
    objects: tuple[SceneObject, ...]
    image: np.ndarray
    depth: np.ndarray
    instances: np.ndarray

    @property
    def kinds(self) -> tuple[str, ...]:
        """The objects in the scene, from front to back."""
        return tuple(thing.kind for thing in self.objects)

    @property
    def caption(self) -> str:
        """One sentence that names the place and every object, including hidden ones, from front to back."""
        *others, last = [with_article(kind) for kind in self.kinds]
        listed = f"{', '.join(others)} and {last}" if others else last
        return f"A {self.theme} with {listed}."


def make_scene(seed: int, number: int) -> Scene:
    """Return one scene of a seed."""
    generator = np.random.default_rng([seed, number])
    theme = tuple(THEMES)[generator.integers(len(THEMES))]
    placements = place(generator, draw_company(generator, theme))
    picture = draw(generator, theme, placements)
    last = len(placements) - 1
    return Scene(
        number=number,
        theme=theme,
        objects=tuple(
            SceneObject(
                kind=placement.kind,
                box=_box(placement.center, placement.size),
                depth=placement.depth,
                visible=_visible_share(picture, last - index),
                contrast=placement.contrast,
            )
            for index, placement in enumerate(reversed(placements))
        ),
        image=picture.image,
        depth=picture.depth,
        # Drawn from back to front, listed from front to back.
        instances=np.where(picture.instances < 0, -1, last - picture.instances).astype(np.int8),
    )


def make_scenes(count: int, seed: int, first: int = 0) -> Iterator[Scene]:
    """Yield `count` scenes of a seed, from number `first`."""
    return (make_scene(seed, number) for number in range(first, first + count))


def question(kind: str) -> str:
    """Return the question that POPE asks about a kind of object."""
    return f"Is there {with_article(kind)} in the image?"


def with_article(kind: str) -> str:
    """Return a word with its indefinite article."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


_MENTION = re.compile(rf"\b({'|'.join(KINDS)})\b")


def mentions(caption: str) -> tuple[str, ...]:
    """Return the kinds that a caption names, in order and with repeats; synonyms do not count."""
    return tuple(_MENTION.findall(caption.lower()))


def mention_spans(caption: str) -> tuple[tuple[str, int, int], ...]:
    """Return the same kinds, each with its first character and the one after its last."""
    return tuple((found[0], *found.span()) for found in _MENTION.finditer(caption.lower()))


def _box(center: tuple[float, float], size: float) -> tuple[int, int, int, int]:
    side = max(6, round(size))
    left, top = (int(np.clip(round(place - side / 2), 0, IMAGE_SIZE - side)) for place in center)
    return (left, top, left + side, top + side)


def _visible_share(picture: Picture, number: int) -> float:
    return float((picture.instances == number).sum()) / picture.areas[number]
