"""Draw scenes: shapes on a ground, and a true depth for every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from qkedit.demo.more_shapes import MORE_SHAPES
from qkedit.demo.shapes import RGB, SHAPES
from qkedit.demo.world import IMAGE_SIZE, Placement, World

SUPERSAMPLING = 4

_ALL_SHAPES = SHAPES | MORE_SHAPES


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


def draw(generator: np.random.Generator, world: World, theme: str, placements: tuple[Placement, ...]) -> Picture:
    """Draw placements, given from the back to the front, over the ground of a theme."""
    canvas = _ground(generator, world, theme)
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


_GROUNDS: dict[str, tuple[RGB, RGB]] = {  # the colour at the back and at the front
    "kitchen": ((205, 190, 170), (170, 140, 110)),
    "street": ((165, 175, 190), (120, 120, 125)),
    "garden": ((165, 195, 205), (120, 155, 95)),
    "lake": ((175, 200, 215), (90, 140, 165)),
    "bedroom": ((200, 185, 200), (150, 125, 120)),
    "farm": ((190, 205, 215), (165, 150, 95)),
}

# The colours that captions name.
_COLOURS: dict[str, RGB] = {
    "red": (200, 45, 45),
    "orange": (235, 140, 40),
    "yellow": (235, 215, 80),
    "green": (60, 140, 60),
    "blue": (60, 100, 195),
    "purple": (145, 75, 175),
    "brown": (120, 75, 45),
    "white": (240, 240, 238),
    "black": (40, 40, 45),
}

# The cells of a group in its square, each by its left, its top and its side.
_CELLS: dict[int, tuple[tuple[float, float, float], ...]] = {
    2: ((0.0, 0.25, 0.5), (0.5, 0.25, 0.5)),
    3: ((0.25, 0.0, 0.5), (0.0, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def _ground(generator: np.random.Generator, world: World, theme: str) -> np.ndarray:
    """Return a gradient with soft blotches, stripes and meaningless patches, float32 `[H, W, 3]`."""
    back, front = (np.array(colour, dtype=np.float32) + generator.normal(0, 10, 3) for colour in _GROUNDS[theme])
    share = np.linspace(0, 1, IMAGE_SIZE, dtype=np.float32)[:, None, None]
    canvas = np.repeat(back * (1 - share) + front * share, IMAGE_SIZE, axis=1)
    blotches = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
        (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
    )
    canvas += (np.asarray(blotches, dtype=np.float32) - 128) * 0.10
    if world.texture:
        canvas += _stripes(generator) * world.texture
    overlay = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(overlay)
    for _ in range(generator.integers(*world.clutter)):
        x, y = generator.uniform(0, IMAGE_SIZE, 2)
        width, height = generator.uniform(4, 18, 2)
        shade = tuple(int(value) for value in generator.integers(70, 230, 3))
        (pen.ellipse if generator.random() < 0.5 else pen.rectangle)((x, y, x + width, y + height), fill=shade)
    return np.asarray(canvas * 0.72 + np.asarray(overlay, dtype=np.float32) * 0.28, dtype=np.float32)


def _stripes(generator: np.random.Generator) -> np.ndarray:
    """Return stripes of a random width and direction, float32 `[H, W, 1]` from -1 to 1."""
    width, angle, shift = generator.uniform(4, 16), generator.uniform(0, np.pi), generator.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32)
    across = rows * np.sin(angle) + columns * np.cos(angle)
    return np.sin(np.pi * across / width + shift, dtype=np.float32)[..., None]


def _stamp(generator: np.random.Generator, placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    """Return an object's colours, float32 `[side, side, 3]`, and its opacity, float32 `[side, side]`."""
    side = max(6, round(placement.size))
    large = side * SUPERSAMPLING
    shape = _ALL_SHAPES[placement.kind]
    if placement.colour:
        tint = _tinted(generator, _COLOURS[placement.colour], spread=12)
    else:
        tint = _tinted(generator, shape.colour)
    accent = _tinted(generator, shape.accent)
    stamp = Image.new("RGBA", (large, large), (*tint, 0))
    if placement.count == 1:
        shape.draw(ImageDraw.Draw(stamp), large, tint, accent)
    else:
        for left, top, share in _CELLS[placement.count]:
            cell = Image.new("RGBA", (int(large * share),) * 2, (*tint, 0))
            shape.draw(ImageDraw.Draw(cell), cell.width, tint, accent)
            stamp.paste(cell, (int(left * large), int(top * large)))
    if generator.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(stamp.resize((side, side), Image.Resampling.BOX), dtype=np.float32)
    return pixels[..., :3], pixels[..., 3] / 255


def _tinted(generator: np.random.Generator, colour: RGB, spread: float = 22) -> RGB:
    red, green, blue = np.clip(np.array(colour) + generator.normal(0, spread, 3), 0, 255).astype(int).tolist()
    return red, green, blue
