"""Read an image in the form for a model: its first frame, upright, eight bits in RGB, transparency over white.

All packages read images here, so that a file means the same on the command line, in a request and in an evaluation.

| stored as | read as |
|---|---|
| 8 bits, palettes, CMYK, YCbCr, LAB, HSV, black and white | Pillow's conversion to RGB |
| any of them with alpha or a transparent colour | laid over white |
| 16 bits (`I;16`, and `I` in PNG and PPM) | v / 257, rounded: 65,535 is white; a transparent grey is white |
| 32 bits or floats (TIFF) | white is the least of 1 (floats only), 255 and 65,535 that no value exceeds |
| several frames | the first one |
| an orientation in its EXIF data | turned upright |
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.errors import UsageError, read_failure

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture

# The formats of browsers. Pillow supports many more, some of which start other programs.
SHOWN_BY_BROWSERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
FORMATS = (*SHOWN_BY_BROWSERS, "TIFF", "PPM", "JPEG2000")
# Longer side by shorter side. Processors enlarge the shorter side: from 40,000 × 1 pixels, a PNG of 118 bytes, they
# would make gigabytes.
MAX_RATIO = 200
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_FORMATS_OF_SIXTEEN_BITS = ("PNG", "PPM")
# How Pillow converts a PNG's values to eight bits, by the name of their storage. It does not convert the transparent
# colour, which then is not a colour of the image.
_TO_EIGHT_BITS: dict[str, Callable[[int], int]] = {
    "L;2": lambda value: value * 85,
    "L;4": lambda value: value * 17,
}
# Of a colour of 16 bits, Pillow reads the upper byte of each value; by the other name it is the lower one.
_UPPER_BYTES, _LOWER_BYTES = "RGB;16B", "RGB;16L"


class TooManyPixels(UsageError):
    """The image has more pixels than the limit; none of it was decoded."""


def read_image(file: Path) -> Picture:
    """Return the image in a file, in RGB. Raises UsageError if the file is not an image."""
    with opened(file, str(file), FORMATS) as image:
        return as_rgb(image, str(file))


def decode_image(content: bytes, where: str, pixels: int) -> Picture:
    """Return the image in a file's bytes, in RGB.

    Args:
        content: the file, in a format of browsers.
        where: the name of the image in an error.
        pixels: the maximum number of pixels.

    Raises:
        TooManyPixels: the image has more pixels.
        UsageError: the file is not such an image.
    """
    with opened(content, where, SHOWN_BY_BROWSERS) as image:
        # Known from the header, so an image that is too large is not decoded.
        if image.width * image.height > pixels:
            raise TooManyPixels(
                f"has {image.width} × {image.height} pixels, which is more than the limit",
                where=where,
                remedy="make it smaller",
            )
        return as_rgb(image, where)


def pixel_sha256(image: Picture) -> str:
    """Return the SHA-256 of an image's size and pixels, a name that does not depend on its file.

    It is that of the text `WIDTHxHEIGHT` and the bytes of the pixels in RGB, row by row.
    """
    pixels = as_rgb(image)
    return hashlib.sha256(f"{pixels.width}x{pixels.height}".encode() + pixels.tobytes()).hexdigest()


def as_rgb(image: Picture, where: str = "image") -> Picture:
    """Convert an image as described in the module, with its `filename`, if it was read from a file.

    Raises:
        UsageError: its sides or values are not supported.
    """
    converted: Any = _converted(image, where)
    converted.filename = getattr(image, "filename", "")
    return converted


def _converted(image: Picture, where: str) -> Picture:
    from PIL import Image, ImageOps

    _check_sides(image, where)
    _fit_transparent_colour(image)
    kind = image.format
    image = ImageOps.exif_transpose(image)
    if image.mode in (*_SIXTEEN_BITS, "I", "F"):
        return _eight_bits(image, kind, where).convert("RGB")
    if image.has_transparency_data:
        # Pillow cannot convert La to RGBA.
        colours = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


def is_plain(content: bytes, where: str = "image") -> bool:
    """Return whether all readers decode a file as `as_rgb` does: 8 bits, opaque, upright, and one frame.

    Raises:
        UsageError: the content is not an image, or has an extreme shape.
    """
    with opened(content, where, SHOWN_BY_BROWSERS) as image:
        _check_sides(image, where)
        upright = image.getexif().get(0x0112, 1) == 1
        plain = image.mode in ("RGB", "L") and not image.has_transparency_data
        return upright and plain and getattr(image, "n_frames", 1) == 1


@contextmanager
def opened(source: Path | bytes, where: str, formats: tuple[str, ...]) -> Iterator[Picture]:
    """Open an image without decoding its pixels, and convert all errors until it is closed.

    Args:
        source: a file, or its bytes.
        where: the name of the image in an error.
        formats: the permitted formats, by Pillow's names.

    Raises:
        UsageError: the source is not an image of these formats, or is broken.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Warnings about broken EXIF data, for example, do not matter here, and would look like a fault of ours.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
                yield image
    except UsageError:
        raise
    except UnidentifiedImageError as error:
        raise UsageError("is not an image", where=where, remedy="give a PNG, JPEG or WebP file") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixels("has far more pixels than the limit", where=where, remedy="make it smaller") from error
    # Pillow's decoders fail in many ways on crafted bytes, which all mean the same.
    except Exception as error:
        raise UsageError(f"cannot be read ({read_failure(error)})", where=where, remedy="check the file") from error


def _check_sides(image: Picture, where: str) -> None:
    shorter, longer = sorted(image.size)
    if longer > MAX_RATIO * shorter:
        raise UsageError(
            f"has {image.width} × {image.height} pixels, one side more than {MAX_RATIO} times the other",
            where=where,
            remedy="crop it to a less extreme shape",
        )


def _fit_transparent_colour(image: Picture) -> None:
    """Give an image that is not decoded yet the transparent colour that its pixels will have, or its transparency."""
    colour, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    if colour is None or image.format != "PNG" or not tiles:
        return
    stored_as = str(tiles[0][3])
    if stored_as == _UPPER_BYTES:
        _make_transparent(image, colour)
    elif fit := _TO_EIGHT_BITS.get(stored_as):
        image.info["transparency"] = fit(colour)


def _make_transparent(image: Picture, colour: tuple[int, int, int]) -> None:
    """Give an image of three times 16 bits, which is not decoded yet, an alpha that is 0 where it has this colour."""
    import numpy as np
    from PIL import Image

    file: Any = getattr(image, "fp")  # noqa: B009
    begun = file.tell()
    file.seek(0)
    # Not closed, as the file is that of the first image.
    lower: Any = Image.open(file, formats=("PNG",))
    lower.tile = [(*tile[:3], _LOWER_BYTES) for tile in lower.tile]
    values = np.asarray(lower).astype(np.uint16)
    file.seek(begun)
    values += np.asarray(image).astype(np.uint16) << 8
    del image.info["transparency"]
    image.putalpha(Image.fromarray(np.where((values == colour).all(axis=-1), 0, 255).astype(np.uint8)))


def _eight_bits(image: Picture, kind: str | None, where: str) -> Picture:
    """Convert an image of 16 or 32 bits or of floats to 8-bit grey."""
    import numpy as np

    values = np.asarray(image)
    if image.mode in _SIXTEEN_BITS:
        return _grey(image, values, ((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    least, most = float(values.min()), float(values.max())
    ranges = (65535,) if kind in _FORMATS_OF_SIXTEEN_BITS else (1, 255, 65535) if image.mode == "F" else (255, 65535)
    white = next((white for white in ranges if least >= 0 and most <= white), None)
    if white is None:
        raise UsageError(
            f"holds values from {least:g} to {most:g}, whose brightness is not defined",
            where=where,
            remedy="save it with 8 or 16 bits",
        )
    return _grey(image, values, (values * (255 / white) + 0.5).astype(np.uint8))


def _grey(image: Picture, values: np.ndarray, greys: np.ndarray) -> Picture:
    """Return greys as an image, white where the value is the transparent one."""
    from PIL import Image

    greys[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(greys)
