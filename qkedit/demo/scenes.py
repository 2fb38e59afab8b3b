"""Seeded synthetic scenes with their ground truth: where each object is, how far away, and how much of it is visible.

    >>> from qkedit.demo.scenes import make_scene
    >>> scene = make_scene(seed=0, number=0)
    >>> scene.caption
    'A farm with a green fence and a white hen in front. Behind them there is a white cow on the left.'

A scene is a function of its seed and number alone, so any scene can be generated again without the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qkedit.demo.captions import with_article
from qkedit.demo.drawing import Picture, draw
from qkedit.demo.scene_objects import SceneObject
from qkedit.demo.world import IMAGE_SIZE, World, draw_company, place
from qkedit.demo.worlds import DEFAULT_WORLD
from qkedit.prompts import CAPTION_PROMPT

__all__ = [
    "CAPTION_PROMPT",
    "HELD_OUT_SEED",
    "IMAGE_SIZE",
    "Scene",
    "SceneObject",
    "make_scene",
    "make_scenes",
    "mentions",
    "question",
    "with_article",
]

# Scenes that are neither in the training nor in the validation sets of the demo models.
HELD_OUT_SEED = 2_000_000


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and its ground truth.

    Attributes:
        number: the scene's number for its seed.
        theme: the place, one of the world's themes.
        objects: from the front to the back; each kind at most once.
        image: uint8 `[H, W, 3]`.
        depth: float32 `[H, W]`, 0 at the front and 1 at the back.
        instances: int8 `[H, W]`, the object (by position in `objects`) that a pixel shows, −1 for the ground.
        world: the world whose rules made it.
    """

    number: int
    theme: str
    objects: tuple[SceneObject, ...]
    image: np.ndarray
    depth: np.ndarray
    instances: np.ndarray
    world: World

    @property
    def kinds(self) -> tuple[str, ...]:
        """The objects in the scene, from front to back."""
        return tuple(thing.kind for thing in self.objects)

    @property
    def caption(self) -> str:
        """Text that names the place and every object once, including hidden ones, from front to back."""
        return self.world.grammar(self.theme, self.objects, self.world.image_size)


def make_scene(seed: int, number: int, world: World = DEFAULT_WORLD) -> Scene:
    """Return one scene of a seed."""
    generator = np.random.default_rng([seed, number])
    theme = tuple(world.themes)[generator.integers(len(world.themes))]
    placements = place(generator, world, draw_company(generator, world, theme))
    picture = draw(generator, world, theme, placements)
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
                colour=placement.colour,
                count=placement.count,
            )
            for index, placement in enumerate(reversed(placements))
        ),
        image=picture.image,
        depth=picture.depth,
        # Drawn from back to front, listed from front to back.
        instances=np.where(picture.instances < 0, -1, last - picture.instances).astype(np.int8),
        world=world,
    )


def make_scenes(count: int, seed: int, first: int = 0, world: World = DEFAULT_WORLD) -> Iterator[Scene]:
    """Yield `count` scenes of a seed, from number `first`."""
    return (make_scene(seed, number, world) for number in range(first, first + count))


def question(kind: str) -> str:
    """Return the question that POPE asks about a kind of object."""
    return f"Is there {with_article(kind)} in the image?"


def mentions(caption: str, world: World = DEFAULT_WORLD) -> tuple[str, ...]:
    """Return the kinds of a world that a caption names, in order and with repeats; synonyms do not count."""
    return world.mentions(caption)


def _box(center: tuple[float, float], size: float) -> tuple[int, int, int, int]:
    side = max(6, round(size))
    left, top = (int(np.clip(round(place - side / 2), 0, IMAGE_SIZE - side)) for place in center)
    return (left, top, left + side, top + side)


def _visible_share(picture: Picture, number: int) -> float:
    return float((picture.instances == number).sum()) / picture.areas[number]
