"""Generate image files in all formats that Pillow writes: valid ones of any mode and size, and broken ones."""

from __future__ import annotations

import io
import struct
import zlib
from random import Random

from PIL import Image

from fuzzing.byte_strings import mutated

FORMATS = {
    "PNG": ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("P", "L"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "I;16", "F", "RGB", "CMYK", "LAB"),
    "BMP": ("1", "L", "P", "RGB"),
}


def picture(random: Random) -> bytes:
    """Return a picture's bytes; two of three are broken."""
    kind = random.randrange(6)
    if kind == 0:
        return strip(random)
    if kind == 1:
        return announced(random)
    content = whole(random)
    return content if kind == 2 else mutated(content, random)


def whole(random: Random) -> bytes:
    """Return a valid picture of up to 40 pixels per side."""
    kind = random.choice(tuple(FORMATS))
    mode = random.choice(FORMATS[kind])
    width, height = random.randrange(1, 41), random.randrange(1, 41)
    depth = {"1": "L", "P": "L", "LA": "L", "LAB": "RGB"}.get(mode, mode)
    size = width * height * {"I;16": 2, "F": 4, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(depth, 1)
    image = Image.frombytes(depth, (width, height), random.randbytes(size))
    if mode == "LAB":
        image = Image.frombytes("LAB", (width, height), random.randbytes(size))
    elif depth != mode:
        image = image.convert(mode)
    settings = {}
    if kind in ("JPEG", "PNG", "WEBP"):
        exif = Image.Exif()
        exif[274] = random.choice((0, 1, 3, 6, 8, 9, 65535))
        settings["exif"] = exif
    if kind in ("GIF", "PNG", "WEBP", "TIFF") and random.random() < 0.2:
        settings |= {"save_all": True, "append_images": [image.copy() for _ in range(3)]}
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def strip(random: Random) -> bytes:
    """Return a long and thin picture of a hundred bytes, which may need gigabytes once it is resized."""
    length = random.choice((150, 500, 2_000, 20_000, 60_000))
    return png(*random.choice(((length, 1), (1, length), (2, length))))


def announced(random: Random) -> bytes:
    """Return the beginning of a picture whose header declares a huge size."""
    return png(random.choice((0, 1, 30_000, 2**16, 2**31 - 1)), random.choice((0, 30_000, 2**31 - 1)), b"\0" * 50)


def png(width: int, height: int, rows: bytes | None = None) -> bytes:
    """Return a grey PNG, encoded here."""
    if rows is None:
        rows = (b"\0" + b"\x7f" * width) * height

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
