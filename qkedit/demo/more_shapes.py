"""The shapes of the crowded world's further kinds of objects, as lists of ellipses, polygons and boxes."""

from __future__ import annotations

from PIL import ImageDraw

from qkedit.demo.shapes import RGB, Shape

# A form's kind (ellipse, box or polygon), whether it has the accent's colour, and its corners on a square of side 1.
Form = tuple[str, bool, tuple[float, ...]]


def _shape(colour: RGB, accent: RGB, *forms: Form) -> Shape:
    """Return the shape that draws some forms, the last in front."""

    def draw(pen: ImageDraw.ImageDraw, side: float, colour: RGB, accent: RGB) -> None:
        for kind, has_accent, corners in forms:
            place = [side * corner for corner in corners]
            {"ellipse": pen.ellipse, "box": pen.rectangle, "polygon": pen.polygon}[kind](
                place, fill=accent if has_accent else colour
            )

    return Shape(draw, colour, accent)


def _ellipse(*corners: float, accent: bool = False) -> Form:
    return "ellipse", accent, corners


def _box(*corners: float, accent: bool = False) -> Form:
    return "box", accent, corners


def _polygon(*corners: float, accent: bool = False) -> Form:
    return "polygon", accent, corners


_DARK, _WOOD, _PALE, _METAL = (45, 45, 50), (125, 85, 55), (235, 235, 225), (150, 155, 160)

MORE_SHAPES: dict[str, Shape] = {
    "bowl": _shape(
        (205, 120, 60),
        _PALE,
        _ellipse(0.02, 0.1, 0.98, 0.9),
        _box(0.3, 0.86, 0.7, 0.98),
        _ellipse(0.02, 0.12, 0.98, 0.5, accent=True),
    ),
    "kettle": _shape(
        (140, 145, 150),
        _DARK,
        _polygon(0.2, 0.35, 0.7, 0.35, 0.85, 0.98, 0.05, 0.98),
        _polygon(0.72, 0.5, 1.0, 0.3, 1.0, 0.42, 0.8, 0.72),
        _box(0.22, 0.05, 0.68, 0.13, accent=True),
        _box(0.22, 0.05, 0.3, 0.35, accent=True),
        _box(0.6, 0.05, 0.68, 0.35, accent=True),
    ),
    "sign": _shape(
        (200, 50, 45),
        _METAL,
        _box(0.45, 0.5, 0.55, 1.0, accent=True),
        _polygon(0.5, 0.0, 0.95, 0.62, 0.05, 0.62),
        _polygon(0.5, 0.2, 0.75, 0.52, 0.25, 0.52, accent=True),
    ),
    "flag": _shape(
        (60, 100, 190),
        _WOOD,
        _box(0.08, 0.0, 0.18, 1.0, accent=True),
        _polygon(0.18, 0.05, 1.0, 0.15, 0.8, 0.32, 1.0, 0.5, 0.18, 0.55),
    ),
    "chair": _shape(
        (125, 80, 50),
        _DARK,
        _box(0.15, 0.0, 0.3, 0.6),
        _box(0.15, 0.5, 0.9, 0.64),
        _box(0.17, 0.6, 0.27, 1.0, accent=True),
        _box(0.78, 0.6, 0.88, 1.0, accent=True),
    ),
    "ladder": _shape(
        (235, 210, 75),
        _DARK,
        _box(0.2, 0.0, 0.32, 1.0),
        _box(0.68, 0.0, 0.8, 1.0),
        *(_box(0.3, top, 0.7, top + 0.08) for top in (0.1, 0.32, 0.54, 0.76)),
    ),
    "tent": _shape(
        (230, 140, 45),
        _DARK,
        _polygon(0.5, 0.05, 1.0, 0.95, 0.0, 0.95),
        _polygon(0.5, 0.35, 0.68, 0.95, 0.32, 0.95, accent=True),
    ),
    "bucket": _shape(
        (60, 100, 190),
        _METAL,
        _ellipse(0.1, 0.0, 0.9, 0.6, accent=True),
        _polygon(0.05, 0.3, 0.95, 0.3, 0.75, 1.0, 0.25, 1.0),
    ),
    "bed": _shape(
        (65, 105, 190),
        _WOOD,
        _box(0.0, 0.2, 0.1, 0.95, accent=True),
        _box(0.9, 0.45, 1.0, 0.95, accent=True),
        _box(0.05, 0.55, 0.95, 0.8),
        _ellipse(0.1, 0.4, 0.4, 0.6, accent=True),
    ),
    "pillow": _shape(
        _PALE,
        _METAL,
        _polygon(0.0, 0.15, 0.5, 0.25, 1.0, 0.15, 0.9, 0.5, 1.0, 0.85, 0.5, 0.75, 0.0, 0.85, 0.1, 0.5),
        _ellipse(0.44, 0.44, 0.56, 0.56, accent=True),
    ),
    "clock": _shape(
        (45, 45, 50),
        _PALE,
        _ellipse(0.03, 0.03, 0.97, 0.97),
        _ellipse(0.17, 0.17, 0.83, 0.83, accent=True),
        _box(0.46, 0.24, 0.54, 0.54),
        _box(0.46, 0.46, 0.74, 0.54),
    ),
    "book": _shape(
        (140, 80, 170),
        _PALE,
        _polygon(0.0, 0.2, 0.5, 0.3, 0.5, 0.9, 0.0, 0.8),
        _polygon(1.0, 0.2, 0.5, 0.3, 0.5, 0.9, 1.0, 0.8),
        _polygon(0.08, 0.2, 0.46, 0.28, 0.46, 0.42, 0.08, 0.34, accent=True),
        _polygon(0.92, 0.2, 0.54, 0.28, 0.54, 0.42, 0.92, 0.34, accent=True),
    ),
    "window": _shape(
        _PALE,
        (130, 175, 215),
        _box(0.08, 0.0, 0.92, 1.0),
        *(
            _box(left, top, left + 0.3, top + 0.36, accent=True)
            for left, top in ((0.16, 0.09), (0.54, 0.09), (0.16, 0.55), (0.54, 0.55))
        ),
    ),
    "hat": _shape(
        (45, 45, 50),
        (200, 50, 45),
        _ellipse(0.0, 0.68, 1.0, 0.95),
        _box(0.25, 0.1, 0.75, 0.8),
        _box(0.25, 0.58, 0.75, 0.7, accent=True),
    ),
    "cow": _shape(
        _PALE,
        _DARK,
        _box(0.12, 0.5, 0.22, 0.98),
        _box(0.62, 0.5, 0.72, 0.98),
        _ellipse(0.02, 0.25, 0.82, 0.72),
        _ellipse(0.68, 0.08, 1.0, 0.45),
        _ellipse(0.2, 0.3, 0.42, 0.55, accent=True),
        _ellipse(0.52, 0.4, 0.68, 0.6, accent=True),
    ),
    "fence": _shape(
        (125, 80, 50),
        _DARK,
        _box(0.0, 0.4, 1.0, 0.5),
        _box(0.0, 0.7, 1.0, 0.8),
        *(
            _polygon(left, 0.3, left + 0.08, 0.15, left + 0.16, 0.3, left + 0.16, 0.95, left, 0.95)
            for left in (0.05, 0.42, 0.79)
        ),
    ),
    "tractor": _shape(
        (65, 140, 65),
        _DARK,
        _box(0.4, 0.4, 0.98, 0.7),
        _box(0.15, 0.05, 0.52, 0.6),
        _box(0.22, 0.12, 0.45, 0.34, accent=True),
        _ellipse(0.0, 0.42, 0.52, 0.96, accent=True),
        _ellipse(0.68, 0.62, 1.0, 0.96, accent=True),
        _ellipse(0.16, 0.58, 0.36, 0.8),
    ),
    "cart": _shape(
        (140, 95, 60),
        _DARK,
        _polygon(0.0, 0.3, 0.85, 0.3, 0.75, 0.65, 0.1, 0.65),
        _box(0.75, 0.45, 1.0, 0.53),
        _ellipse(0.2, 0.5, 0.65, 0.95, accent=True),
        _ellipse(0.34, 0.64, 0.51, 0.81),
    ),
    "hen": _shape(
        (125, 80, 50),
        (210, 60, 40),
        _box(0.42, 0.75, 0.5, 1.0, accent=True),
        _polygon(0.0, 0.2, 0.3, 0.4, 0.12, 0.6),
        _ellipse(0.08, 0.35, 0.78, 0.85),
        _ellipse(0.58, 0.12, 0.9, 0.5),
        _ellipse(0.66, 0.0, 0.86, 0.18, accent=True),
        _polygon(0.86, 0.25, 1.0, 0.32, 0.86, 0.4, accent=True),
    ),
    "egg": _shape(
        _PALE,
        _METAL,
        _ellipse(0.15, 0.2, 0.85, 1.0),
        _ellipse(0.22, 0.02, 0.78, 0.8),
    ),
}
