"""Draw the demo's scenes: sixteen shapes, four kinds of ground, and a true depth for every pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from qkedit.demo.world import IMAGE_SIZE, THEMES, Placement

SUPERSAMPLING = 4
Colour = tuple[int, int, int]
# Draws a shape into a square of the given side.
Shape = Callable[[ImageDraw.ImageDraw, float, Colour, Colour], None]


@dataclass(frozen=True)
class Picture:
    """A drawn scene.

    Attributes:
        image: uint8 `[H, W, 3]`.
        depth: float32 `[H, W]`, 0 at the front and 1 at the back.
        instances: int8 `[H, W]`, the index of the placement that a pixel shows, −1 for the ground.
        areas: the number of pixels of each placement before anything covered it.
    """

    image: np.ndarray
    depth: np.ndarray
    instances: np.ndarray
    areas: tuple[int, ...]


def draw(generator: np.random.Generator, theme: str, placements: tuple[Placement, ...]) -> Picture:
    """Draw placements, given from the back to the front, over the ground of a theme."""
    canvas = _ground(generator, theme)
    depth = np.repeat(np.linspace(1.0, 0.0, IMAGE_SIZE, dtype=np.float32)[:, None], IMAGE_SIZE, axis=1)
    instances = np.full((IMAGE_SIZE, IMAGE_SIZE), -1, dtype=np.int8)
    areas = []
    for number, placement in enumerate(placements):
        colours, opacity = _stamp(generator, placement)
        side = opacity.shape[0]
        left = int(np.clip(round(placement.center[0] - side / 2), 0, IMAGE_SIZE - side))
        top = int(np.clip(round(placement.center[1] - side / 2), 0, IMAGE_SIZE - side))
        window = (slice(top, top + side), slice(left, left + side))
        blend = (opacity * placement.contrast)[..., None]
        canvas[window] = canvas[window] * (1 - blend) + colours * blend
        solid = opacity > 0.5
        depth[window][solid] = placement.depth
        instances[window][solid] = number
        areas.append(int(solid.sum()))
    canvas += generator.normal(0, 7, canvas.shape).astype(np.float32)
    return Picture(np.clip(canvas, 0, 255).round().astype(np.uint8), depth, instances, tuple(areas))


_GROUNDS: dict[str, tuple[Colour, Colour]] = {  # the colour at the back and at the front
    "kitchen": ((205, 190, 170), (170, 140, 110)),
    "street": ((165, 175, 190), (120, 120, 125)),
    "garden": ((165, 195, 205), (120, 155, 95)),
    "lake": ((175, 200, 215), (90, 140, 165)),
}
assert _GROUNDS.keys() == THEMES.keys()


def _ground(generator: np.random.Generator, theme: str) -> np.ndarray:
    """Return a gradient with soft blotches and a few meaningless patches, float32 `[H, W, 3]`."""
    back, front = (np.array(colour, dtype=np.float32) + generator.normal(0, 10, 3) for colour in _GROUNDS[theme])
    share = np.linspace(0, 1, IMAGE_SIZE, dtype=np.float32)[:, None, None]
    canvas = np.repeat(back * (1 - share) + front * share, IMAGE_SIZE, axis=1)
    blotches = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
        (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
    )
    canvas += (np.asarray(blotches, dtype=np.float32) - 128) * 0.10
    overlay = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(overlay)
    for _ in range(generator.integers(2, 6)):
        x, y = generator.uniform(0, IMAGE_SIZE, 2)
        width, height = generator.uniform(4, 18, 2)
        shade = tuple(int(value) for value in generator.integers(70, 230, 3))
        (pen.ellipse if generator.random() < 0.5 else pen.rectangle)((x, y, x + width, y + height), fill=shade)
    return np.asarray(canvas * 0.72 + np.asarray(overlay, dtype=np.float32) * 0.28, dtype=np.float32)


def _stamp(generator: np.random.Generator, placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    """Return an object's colours, float32 `[side, side, 3]`, and its opacity, float32 `[side, side]`."""
    side = max(6, round(placement.size))
    large = side * SUPERSAMPLING
    shape, colour, accent = _SHAPES[placement.kind]
    tint, accent_tint = _tinted(generator, colour), _tinted(generator, accent)
    stamp = Image.new("RGBA", (large, large), (*tint, 0))
    shape(ImageDraw.Draw(stamp), large, tint, accent_tint)
    if generator.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(stamp.resize((side, side), Image.Resampling.BOX), dtype=np.float32)
    return pixels[..., :3], pixels[..., 3] / 255


def _tinted(generator: np.random.Generator, colour: Colour) -> Colour:
    red, green, blue = np.clip(np.array(colour) + generator.normal(0, 22, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _box(s: float, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    return (left * s, top * s, right * s, bottom * s)


def _points(s: float, *points: tuple[float, float]) -> list[tuple[float, float]]:
    return [(x * s, y * s) for x, y in points]


def _plate(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.ellipse(_box(s, 0.0, 0.2, 1.0, 0.8), fill=colour)
    pen.ellipse(_box(s, 0.22, 0.33, 0.78, 0.67), fill=accent)


def _cup(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.arc(_box(s, 0.55, 0.3, 1.0, 0.75), 0, 360, fill=colour, width=max(1, int(0.1 * s)))
    pen.polygon(_points(s, (0.05, 0.1), (0.75, 0.1), (0.65, 0.95), (0.15, 0.95)), fill=colour)
    pen.ellipse(_box(s, 0.05, 0.02, 0.75, 0.2), fill=accent)


def _fork(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.rectangle(_box(s, 0.44, 0.4, 0.56, 1.0), fill=colour)
    pen.rectangle(_box(s, 0.25, 0.32, 0.75, 0.44), fill=colour)
    for left in (0.25, 0.45, 0.65):
        pen.rectangle(_box(s, left, 0.0, left + 0.1, 0.36), fill=accent)


def _apple(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.ellipse(_box(s, 0.05, 0.2, 0.6, 0.98), fill=colour)
    pen.ellipse(_box(s, 0.4, 0.2, 0.95, 0.98), fill=colour)
    pen.polygon(_points(s, (0.5, 0.25), (0.6, 0.0), (0.85, 0.08)), fill=accent)


def _car(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.polygon(_points(s, (0.2, 0.5), (0.32, 0.25), (0.7, 0.25), (0.82, 0.5)), fill=colour)
    pen.rectangle(_box(s, 0.0, 0.48, 1.0, 0.74), fill=colour)
    for left in (0.12, 0.64):
        pen.ellipse(_box(s, left, 0.6, left + 0.24, 0.84), fill=accent)


def _lamp(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.rectangle(_box(s, 0.45, 0.3, 0.55, 1.0), fill=accent)
    pen.rectangle(_box(s, 0.32, 0.93, 0.68, 1.0), fill=accent)
    pen.ellipse(_box(s, 0.28, 0.0, 0.72, 0.42), fill=colour)


def _house(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.rectangle(_box(s, 0.12, 0.45, 0.88, 1.0), fill=colour)
    pen.polygon(_points(s, (0.0, 0.47), (0.5, 0.0), (1.0, 0.47)), fill=accent)
    pen.rectangle(_box(s, 0.42, 0.65, 0.6, 1.0), fill=accent)


def _bus(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.rectangle(_box(s, 0.0, 0.22, 1.0, 0.76), fill=colour)
    for left in (0.08, 0.32, 0.56, 0.8):
        pen.rectangle(_box(s, left, 0.3, left + 0.14, 0.48), fill=(235, 240, 245))
    for left in (0.14, 0.66):
        pen.ellipse(_box(s, left, 0.66, left + 0.2, 0.86), fill=accent)


def _tree(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.rectangle(_box(s, 0.42, 0.55, 0.58, 1.0), fill=accent)
    pen.ellipse(_box(s, 0.12, 0.0, 0.88, 0.66), fill=colour)


def _flower(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.rectangle(_box(s, 0.46, 0.5, 0.54, 1.0), fill=(70, 120, 60))
    for x, y in ((0.3, 0.1), (0.54, 0.1), (0.18, 0.3), (0.66, 0.3), (0.42, 0.44)):
        pen.ellipse(_box(s, x - 0.06, y - 0.06, x + 0.22, y + 0.22), fill=colour)
    pen.ellipse(_box(s, 0.38, 0.22, 0.62, 0.46), fill=accent)


def _bird(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.polygon(_points(s, (0.5, 0.6), (0.0, 0.15), (0.2, 0.12), (0.5, 0.42)), fill=colour)
    pen.polygon(_points(s, (0.5, 0.6), (1.0, 0.15), (0.8, 0.12), (0.5, 0.42)), fill=colour)
    pen.ellipse(_box(s, 0.38, 0.4, 0.62, 0.78), fill=accent)


def _ball(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.ellipse(_box(s, 0.08, 0.08, 0.92, 0.92), fill=colour)
    pen.polygon(_points(s, (0.4, 0.1), (0.6, 0.1), (0.6, 0.9), (0.4, 0.9)), fill=accent)


def _boat(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.polygon(_points(s, (0.0, 0.66), (1.0, 0.66), (0.8, 0.95), (0.2, 0.95)), fill=colour)
    pen.polygon(_points(s, (0.48, 0.0), (0.48, 0.62), (0.1, 0.62)), fill=accent)
    pen.polygon(_points(s, (0.55, 0.1), (0.55, 0.62), (0.9, 0.62)), fill=accent)


def _duck(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.ellipse(_box(s, 0.0, 0.45, 0.8, 0.95), fill=colour)
    pen.ellipse(_box(s, 0.5, 0.12, 0.86, 0.52), fill=colour)
    pen.polygon(_points(s, (0.82, 0.27), (1.0, 0.35), (0.82, 0.43)), fill=accent)


def _fish(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.ellipse(_box(s, 0.22, 0.25, 1.0, 0.75), fill=colour)
    pen.polygon(_points(s, (0.32, 0.5), (0.0, 0.22), (0.0, 0.78)), fill=accent)


def _shell(pen: ImageDraw.ImageDraw, s: float, colour: Colour, accent: Colour) -> None:
    pen.pieslice(_box(s, 0.05, 0.1, 0.95, 1.2), 180, 360, fill=colour)
    pen.rectangle(_box(s, 0.38, 0.6, 0.62, 0.9), fill=colour)
    for x in (0.25, 0.5, 0.75):
        pen.line(_box(s, 0.5, 0.62, x, 0.16), fill=accent, width=max(1, int(0.06 * s)))


_SHAPES: dict[str, tuple[Shape, Colour, Colour]] = {
    "plate": (_plate, (235, 235, 235), (180, 190, 205)),
    "cup": (_cup, (70, 105, 175), (225, 225, 230)),
    "fork": (_fork, (95, 95, 105), (95, 95, 105)),
    "apple": (_apple, (190, 50, 45), (75, 125, 50)),
    "car": (_car, (185, 60, 60), (35, 35, 40)),
    "lamp": (_lamp, (235, 205, 90), (60, 60, 70)),
    "house": (_house, (205, 175, 140), (145, 75, 60)),
    "bus": (_bus, (220, 165, 50), (35, 35, 40)),
    "tree": (_tree, (55, 115, 55), (105, 75, 50)),
    "flower": (_flower, (205, 95, 160), (235, 205, 80)),
    "bird": (_bird, (75, 70, 85), (75, 70, 85)),
    "ball": (_ball, (200, 80, 60), (235, 235, 235)),
    "boat": (_boat, (125, 75, 55), (235, 230, 220)),
    "duck": (_duck, (230, 200, 85), (215, 120, 45)),
    "fish": (_fish, (100, 130, 165), (65, 90, 125)),
    "shell": (_shell, (225, 175, 165), (165, 110, 105)),
}
