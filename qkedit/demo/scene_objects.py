"""An object of a scene with its ground truth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene, or a group of objects of one kind.

    Attributes:
        kind: one of the world's kinds.
        box: left, top, right and bottom in pixels, including hidden parts; right and bottom are exclusive.
        depth: 0 at the front, 1 at the back.
        visible: the share of its pixels that nothing covers.
        contrast: its opacity, 0 to 1.
        colour: the name of its colour; empty in a world whose captions name no colours.
        count: the number of objects in the group; 1 for a single one.
    """

    kind: str
    box: tuple[int, int, int, int]
    depth: float
    visible: float
    contrast: float
    colour: str = ""
    count: int = 1
