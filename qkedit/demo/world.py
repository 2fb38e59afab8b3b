"""A small world of objects as data: their kinds, the places where they occur together, and their visibility.

A world gives a model that learns it the same reason to hallucinate that real models have. Objects of a place occur
together (a plate in a kitchen makes a cup likely), and some objects are small, faint or half hidden, so that guessing
the likely companion is right more often than wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qkedit.demo.captions import Grammar, plural

IMAGE_SIZE = 112


@dataclass(frozen=True, eq=False)
class World:
    """The rules by which scenes are made.

    Attributes:
        name: its name in options and files.
        themes: the places and the kinds of objects that belong there, in the order of `shares`.
        shares: for each kind of a place, how often it is shown if the kind before it is, and otherwise.
        stranger: how often a scene shows something that belongs elsewhere.
        fewest, most: the limits of the number of kinds in a scene.
        hard: how often an object is small and faint beyond what its distance asks for.
        tucked_away: how often an object is behind a nearer one.
        nearest, shrinking: the size in pixels of an object at the front, and by how much it is smaller at the back.
        clutter: the least number of meaningless patches on the ground, and the number that no scene reaches.
        texture: the strength of stripes across the ground, in grey levels.
        grammar: writes captions.
        colours: the colours of each kind, the usual one first; empty for kinds in the one colour of their shape.
        countable: the kinds that also occur in groups of two and three.
        image_size: the width and height of an image in pixels.
    """

    name: str
    themes: Mapping[str, tuple[str, ...]]
    shares: tuple[tuple[float, float], ...]
    stranger: float
    fewest: int
    most: int
    hard: float
    tucked_away: float
    nearest: float
    shrinking: float
    clutter: tuple[int, int]
    texture: float
    grammar: Grammar
    colours: Mapping[str, tuple[str, ...]]
    countable: frozenset[str]
    image_size: int = IMAGE_SIZE

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """All kinds of objects, place by place."""
        return tuple(kind for kinds in self.themes.values() for kind in kinds)

    @cached_property
    def colour_names(self) -> tuple[str, ...]:
        """All colours that captions can name, sorted."""
        return tuple(sorted({colour for colours in self.colours.values() for colour in colours}))

    def mentions(self, caption: str) -> tuple[str, ...]:
        """Return the kinds that a caption names, in order and with repeats; synonyms do not count."""
        return tuple(kind for kind, _, _ in self.mention_spans(caption))

    def mention_spans(self, caption: str) -> tuple[tuple[str, int, int], ...]:
        """Return the same kinds, each with its first character and the one after its last."""
        kind_of, pattern = self._words
        return tuple((kind_of[found[0]], *found.span()) for found in pattern.finditer(caption.lower()))

    @cached_property
    def _words(self) -> tuple[dict[str, str], re.Pattern[str]]:
        """The kind that each word names, and the pattern of these words; plurals only of what occurs in groups."""
        kind_of = {kind: kind for kind in self.kinds}
        kind_of |= {plural(kind): kind for kind in self.kinds if kind in self.countable}
        return kind_of, re.compile(rf"\b({'|'.join(kind_of)})\b")


# How often a kind has its usual colour, and the two others; how often a countable kind is one, two or three.
COLOUR_SHARES = (0.6, 0.25, 0.15)
COUNT_SHARES = (0.7, 0.2, 0.1)
_GROUP_SIZE = 1.4  # the side of a group's box, in sides of one object's


@dataclass(frozen=True)
class Placement:
    """The placement of an object before drawing.

    Attributes:
        kind: one of the world's kinds.
        center: x and y in pixels.
        size: its longer side in pixels, for a group that of all together.
        depth: 0 at the front, 1 at the back.
        contrast: opacity, 0 to 1.
        colour: the name of its colour; empty for that of its shape.
        count: the number of objects in the group; 1 for a single one.
    """

    kind: str
    center: tuple[float, float]
    size: float
    depth: float
    contrast: float
    colour: str = ""
    count: int = 1


def draw_company(generator: np.random.Generator, world: World, theme: str) -> tuple[str, ...]:
    """Return the kinds that a scene of a theme shows, each once."""
    elsewhere = [kind for kind in world.kinds if kind not in world.themes[theme]]
    while True:
        kinds: list[str] = []
        before = True
        for kind, (beside, alone) in zip(world.themes[theme], world.shares, strict=True):
            before = bool(generator.random() < (beside if before else alone))
            if before:
                kinds.append(kind)
        if generator.random() < world.stranger:
            kinds.append(elsewhere[generator.integers(len(elsewhere))])
        if world.fewest <= len(kinds) <= world.most:
            return tuple(kinds)


def place(generator: np.random.Generator, world: World, kinds: tuple[str, ...]) -> tuple[Placement, ...]:
    """Put objects into a scene, from the back to the front: what is far is higher up, smaller and fainter."""
    looks = [(_colour(generator, world, kind), _count(generator, world, kind)) for kind in kinds]
    depths = generator.random(len(kinds))
    placed: list[Placement] = []
    # From front to back, so that the position of the nearer object is known.
    for index in np.argsort(depths):
        depth = float(depths[index])
        colour, count = looks[index]
        size = (world.nearest - world.shrinking * depth) * generator.uniform(0.85, 1.15)
        size *= _GROUP_SIZE if count > 1 else 1
        contrast = generator.uniform(0.75, 1.0) * (1 - 0.35 * depth)
        if generator.random() < world.hard:
            size *= generator.uniform(0.55, 0.8)
            contrast *= generator.uniform(0.2, 0.5)
        if placed and generator.random() < world.tucked_away:
            before = placed[generator.integers(len(placed))]
            shift = generator.uniform(-0.35, 0.35, 2) * before.size
            center = (before.center[0] + shift[0], before.center[1] + shift[1])
        else:
            center = _free_place(generator, placed, size, depth)
        low, high = size / 2, IMAGE_SIZE - size / 2
        inside = (float(np.clip(center[0], low, high)), float(np.clip(center[1], low, high)))
        placed.append(Placement(kinds[index], inside, float(size), depth, float(contrast), colour, count))
    return tuple(reversed(placed))


def _colour(generator: np.random.Generator, world: World, kind: str) -> str:
    colours = world.colours.get(kind, ())
    return colours[generator.choice(len(colours), p=COLOUR_SHARES)] if colours else ""


def _count(generator: np.random.Generator, world: World, kind: str) -> int:
    return 1 + int(generator.choice(len(COUNT_SHARES), p=COUNT_SHARES)) if kind in world.countable else 1


def _free_place(
    generator: np.random.Generator, placed: list[Placement], size: float, depth: float
) -> tuple[float, float]:
    """Return the position with the most space among a few random ones at the height that belongs to a depth."""
    tries = [
        (generator.uniform(size / 2, IMAGE_SIZE - size / 2), 92 - 66 * depth + generator.normal(0, 8))
        for _ in range(6)
    ]

    def room(center: tuple[float, float]) -> float:
        gaps = [np.hypot(center[0] - p.center[0], center[1] - p.center[1]) - (size + p.size) / 2 for p in placed]
        return float(min(gaps, default=0.0))

    return max(tries, key=room)
