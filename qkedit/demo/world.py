"""The demo's small world: the kinds of objects, the places where they occur together, and their visibility.

The world gives a model that learns it the same reason to hallucinate that real models have. Objects of a place occur
together (a plate in a kitchen makes a cup likely), and some objects are small, faint or half hidden, so that guessing
the likely companion is right more often than wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The places and their objects: the anchor first, then its partner, then the occasional ones.
THEMES: dict[str, tuple[str, ...]] = {
    "kitchen": ("plate", "cup", "fork", "apple"),
    "street": ("car", "lamp", "house", "bus"),
    "garden": ("tree", "flower", "bird", "ball"),
    "lake": ("boat", "duck", "fish", "shell"),
}
KINDS: tuple[str, ...] = tuple(kind for kinds in THEMES.values() for kind in kinds)

ANCHOR = 0.80  # how often a place shows its anchor
PARTNER_BESIDE_ANCHOR = 0.75
PARTNER_ALONE = 0.25
THIRD = 0.45
FOURTH = 0.20
STRANGER = 0.35  # how often something is there that belongs elsewhere
MOST_OBJECTS = 5

HARD = 0.30  # how often an object is small and faint beyond what its distance asks for
TUCKED_AWAY = 0.20  # how often an object stands behind a nearer one

IMAGE_SIZE = 112


@dataclass(frozen=True)
class Placement:
    """The placement of an object before drawing.

    Attributes:
        kind: one of `KINDS`.
        center: x and y in pixels.
        size: its longer side in pixels.
        depth: 0 at the front, 1 at the back.
        contrast: opacity, 0 to 1.
    """

    kind: str
    center: tuple[float, float]
    size: float
    depth: float
    contrast: float


def draw_company(generator: np.random.Generator, theme: str) -> tuple[str, ...]:
    """Return the kinds that a scene of a theme shows, one to five of them, each once."""
    anchor, partner, third, fourth = THEMES[theme]
    elsewhere = [kind for kind in KINDS if kind not in THEMES[theme]]
    while True:
        kinds = [anchor] if generator.random() < ANCHOR else []
        if generator.random() < (PARTNER_BESIDE_ANCHOR if kinds else PARTNER_ALONE):
            kinds.append(partner)
        kinds += [kind for kind, share in ((third, THIRD), (fourth, FOURTH)) if generator.random() < share]
        if generator.random() < STRANGER:
            kinds.append(elsewhere[generator.integers(len(elsewhere))])
        if 1 <= len(kinds) <= MOST_OBJECTS:
            return tuple(kinds)


def place(generator: np.random.Generator, kinds: tuple[str, ...]) -> tuple[Placement, ...]:
    """Put objects into a scene, from the back to the front: what is far stands higher, is smaller and fainter."""
    depths = generator.random(len(kinds))
    placed: list[Placement] = []
    # From front to back, so that the position of the nearer object is known.
    for index in np.argsort(depths):
        depth = float(depths[index])
        size = (27 - 15 * depth) * generator.uniform(0.85, 1.15)
        contrast = generator.uniform(0.75, 1.0) * (1 - 0.35 * depth)
        if generator.random() < HARD:
            size *= generator.uniform(0.55, 0.8)
            contrast *= generator.uniform(0.2, 0.5)
        if placed and generator.random() < TUCKED_AWAY:
            before = placed[generator.integers(len(placed))]
            shift = generator.uniform(-0.35, 0.35, 2) * before.size
            center = (before.center[0] + shift[0], before.center[1] + shift[1])
        else:
            center = _free_place(generator, placed, size, depth)
        low, high = size / 2, IMAGE_SIZE - size / 2
        inside = (float(np.clip(center[0], low, high)), float(np.clip(center[1], low, high)))
        placed.append(Placement(kinds[index], inside, float(size), depth, float(contrast)))
    return tuple(reversed(placed))


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
