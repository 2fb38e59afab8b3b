"""The shapes of the small world's sixteen kinds of objects, and the colours that they have by default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import ImageDraw

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """The look of a kind of objects.

    Attributes:
        draw: draws it into the upper left square of the given side, in a colour and an accent.
        colour: its own colour.
        accent: the colour of details.
    """

    draw: Callable[[ImageDraw.ImageDraw, float, RGB, RGB], None]
    colour: RGB
    accent: RGB


def _box(s: float, left: float, top: float, right: float, bottom: float) -> Box:
    return (left * s, top * s, right * s, bottom * s)


def _points(s: float, *points: tuple[float, float]) -> list[tuple[float, float]]:
    return [(x * s, y * s) for x, y in points]


def _plate(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.ellipse(_box(s, 0.0, 0.2, 1.0, 0.8), fill=colour)
    pen.ellipse(_box(s, 0.22, 0.33, 0.78, 0.67), fill=accent)


def _cup(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.arc(_box(s, 0.55, 0.3, 1.0, 0.75), 0, 360, fill=colour, width=max(1, int(0.1 * s)))
    pen.polygon(_points(s, (0.05, 0.1), (0.75, 0.1), (0.65, 0.95), (0.15, 0.95)), fill=colour)
    pen.ellipse(_box(s, 0.05, 0.02, 0.75, 0.2), fill=accent)


def _fork(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.rectangle(_box(s, 0.44, 0.4, 0.56, 1.0), fill=colour)
    pen.rectangle(_box(s, 0.25, 0.32, 0.75, 0.44), fill=colour)
    for left in (0.25, 0.45, 0.65):
        pen.rectangle(_box(s, left, 0.0, left + 0.1, 0.36), fill=accent)


def _apple(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.ellipse(_box(s, 0.05, 0.2, 0.6, 0.98), fill=colour)
    pen.ellipse(_box(s, 0.4, 0.2, 0.95, 0.98), fill=colour)
    pen.polygon(_points(s, (0.5, 0.25), (0.6, 0.0), (0.85, 0.08)), fill=accent)


def _car(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.polygon(_points(s, (0.2, 0.5), (0.32, 0.25), (0.7, 0.25), (0.82, 0.5)), fill=colour)
    pen.rectangle(_box(s, 0.0, 0.48, 1.0, 0.74), fill=colour)
    for left in (0.12, 0.64):
        pen.ellipse(_box(s, left, 0.6, left + 0.24, 0.84), fill=accent)


def _lamp(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.rectangle(_box(s, 0.45, 0.3, 0.55, 1.0), fill=accent)
    pen.rectangle(_box(s, 0.32, 0.93, 0.68, 1.0), fill=accent)
    pen.ellipse(_box(s, 0.28, 0.0, 0.72, 0.42), fill=colour)


def _house(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.rectangle(_box(s, 0.12, 0.45, 0.88, 1.0), fill=colour)
    pen.polygon(_points(s, (0.0, 0.47), (0.5, 0.0), (1.0, 0.47)), fill=accent)
    pen.rectangle(_box(s, 0.42, 0.65, 0.6, 1.0), fill=accent)


def _bus(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.rectangle(_box(s, 0.0, 0.22, 1.0, 0.76), fill=colour)
    for left in (0.08, 0.32, 0.56, 0.8):
        pen.rectangle(_box(s, left, 0.3, left + 0.14, 0.48), fill=(235, 240, 245))
    for left in (0.14, 0.66):
        pen.ellipse(_box(s, left, 0.66, left + 0.2, 0.86), fill=accent)


def _tree(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.rectangle(_box(s, 0.42, 0.55, 0.58, 1.0), fill=accent)
    pen.ellipse(_box(s, 0.12, 0.0, 0.88, 0.66), fill=colour)


def _flower(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.rectangle(_box(s, 0.46, 0.5, 0.54, 1.0), fill=(70, 120, 60))
    for x, y in ((0.3, 0.1), (0.54, 0.1), (0.18, 0.3), (0.66, 0.3), (0.42, 0.44)):
        pen.ellipse(_box(s, x - 0.06, y - 0.06, x + 0.22, y + 0.22), fill=colour)
    pen.ellipse(_box(s, 0.38, 0.22, 0.62, 0.46), fill=accent)


def _bird(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.polygon(_points(s, (0.5, 0.6), (0.0, 0.15), (0.2, 0.12), (0.5, 0.42)), fill=colour)
    pen.polygon(_points(s, (0.5, 0.6), (1.0, 0.15), (0.8, 0.12), (0.5, 0.42)), fill=colour)
    pen.ellipse(_box(s, 0.38, 0.4, 0.62, 0.78), fill=accent)


def _ball(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.ellipse(_box(s, 0.08, 0.08, 0.92, 0.92), fill=colour)
    pen.polygon(_points(s, (0.4, 0.1), (0.6, 0.1), (0.6, 0.9), (0.4, 0.9)), fill=accent)


def _boat(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.polygon(_points(s, (0.0, 0.66), (1.0, 0.66), (0.8, 0.95), (0.2, 0.95)), fill=colour)
    pen.polygon(_points(s, (0.48, 0.0), (0.48, 0.62), (0.1, 0.62)), fill=accent)
    pen.polygon(_points(s, (0.55, 0.1), (0.55, 0.62), (0.9, 0.62)), fill=accent)


def _duck(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.ellipse(_box(s, 0.0, 0.45, 0.8, 0.95), fill=colour)
    pen.ellipse(_box(s, 0.5, 0.12, 0.86, 0.52), fill=colour)
    pen.polygon(_points(s, (0.82, 0.27), (1.0, 0.35), (0.82, 0.43)), fill=accent)


def _fish(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.ellipse(_box(s, 0.22, 0.25, 1.0, 0.75), fill=colour)
    pen.polygon(_points(s, (0.32, 0.5), (0.0, 0.22), (0.0, 0.78)), fill=accent)


def _shell(pen: ImageDraw.ImageDraw, s: float, colour: RGB, accent: RGB) -> None:
    pen.pieslice(_box(s, 0.05, 0.1, 0.95, 1.2), 180, 360, fill=colour)
    pen.rectangle(_box(s, 0.38, 0.6, 0.62, 0.9), fill=colour)
    for x in (0.25, 0.5, 0.75):
        pen.line(_box(s, 0.5, 0.62, x, 0.16), fill=accent, width=max(1, int(0.06 * s)))


SHAPES: dict[str, Shape] = {
    "plate": Shape(_plate, (235, 235, 235), (180, 190, 205)),
    "cup": Shape(_cup, (70, 105, 175), (225, 225, 230)),
    "fork": Shape(_fork, (95, 95, 105), (95, 95, 105)),
    "apple": Shape(_apple, (190, 50, 45), (75, 125, 50)),
    "car": Shape(_car, (185, 60, 60), (35, 35, 40)),
    "lamp": Shape(_lamp, (235, 205, 90), (60, 60, 70)),
    "house": Shape(_house, (205, 175, 140), (145, 75, 60)),
    "bus": Shape(_bus, (220, 165, 50), (35, 35, 40)),
    "tree": Shape(_tree, (55, 115, 55), (105, 75, 50)),
    "flower": Shape(_flower, (205, 95, 160), (235, 205, 80)),
    "bird": Shape(_bird, (75, 70, 85), (75, 70, 85)),
    "ball": Shape(_ball, (200, 80, 60), (235, 235, 235)),
    "boat": Shape(_boat, (125, 75, 55), (235, 230, 220)),
    "duck": Shape(_duck, (230, 200, 85), (215, 120, 45)),
    "fish": Shape(_fish, (100, 130, 165), (65, 90, 125)),
    "shell": Shape(_shell, (225, 175, 165), (165, 110, 105)),
}
