"""Test every mode and format in which an image may be stored, and the pixels that a model receives."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qkedit.errors import UsageError
from qkedit.images import as_rgb, decode_image, is_plain, read_image

RAMP = np.tile(np.arange(256), (3, 1))  # black to white, in 8 bits


def stored(image: Image.Image, kind: str, **settings: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **settings)
    return content.getvalue()


def ramp(values: Any, dtype: type) -> Image.Image:
    return Image.fromarray(np.asarray(values).astype(dtype))


def transparent(red: int, alpha: int) -> Image.Image:
    return Image.new("RGBA", (6, 4), (red, 0, 0, alpha))


def palette(colour: tuple[int, int, int]) -> Image.Image:
    """Return an image with one palette colour, which is declared transparent when it is saved."""
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, *colour])
    return image


# The stored image, and the mean of red, green and blue for the model; that of a ramp from black to white is 127.5.
GREY = (127.5, 127.5, 127.5)
MODES: dict[str, tuple[bytes, tuple[float, float, float]]] = {
    "L": (stored(ramp(RAMP, np.uint8), "png"), GREY),
    "I;16 in PNG": (stored(ramp(RAMP * 257, np.uint16), "png"), GREY),
    "I;16, dark": (stored(ramp(RAMP, np.uint16), "png"), (0.496, 0.496, 0.496)),  # 129 to 255 are rounded to 1
    "I;16 in TIFF": (stored(ramp(RAMP * 257, np.uint16), "tiff"), GREY),
    "I;16B in TIFF": (stored(ramp(RAMP * 257, np.dtype(">u2")), "tiff"), GREY),  # type: ignore[arg-type]
    "I in PGM": (stored(ramp(RAMP * 257, np.int32), "ppm"), GREY),
    "I of 8 bits": (stored(ramp(RAMP, np.int32), "tiff"), GREY),
    "I of 16 bits": (stored(ramp(RAMP * 257, np.int32), "tiff"), GREY),
    "F from 0 to 1": (stored(ramp(RAMP / 255, np.float32), "tiff"), GREY),
    "F of 8 bits": (stored(ramp(RAMP, np.float32), "tiff"), GREY),
    "F of 16 bits": (stored(ramp(RAMP * 257, np.float32), "tiff"), GREY),
    "1": (stored(ramp(RAMP, np.uint8).point(lambda value: value // 128 * 255, "1"), "png"), GREY),
    "LA": (stored(Image.new("LA", (6, 4), (100, 51)), "png"), (224, 224, 224)),  # 100 · 0.2 + 255 · 0.8
    "RGBA, clear": (stored(transparent(200, 0), "png"), (255, 255, 255)),
    "RGBA, half": (stored(transparent(200, 51), "png"), (244, 204, 204)),
    "RGBA in WebP": (stored(transparent(200, 0), "webp", lossless=True), (255, 255, 255)),
    "RGB with a transparent colour": (
        stored(Image.new("RGB", (6, 4), (9, 9, 9)), "png", transparency=(9, 9, 9)),
        (255, 255, 255),
    ),
    "L with a transparent grey": (stored(Image.new("L", (6, 4), 9), "png", transparency=9), (255, 255, 255)),
    "P": (stored(palette((200, 100, 0)), "png"), (200, 100, 0)),
    "P, transparent": (stored(palette((200, 100, 0)), "png", transparency=1), (255, 255, 255)),
    "P, half": (stored(palette((200, 100, 0)), "png", transparency=bytes([255, 51])), (244, 224, 204)),
    "P in GIF, transparent": (stored(palette((200, 100, 0)), "gif", transparency=1), (255, 255, 255)),
    "CMYK": (stored(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "tiff"), (255, 0, 0)),
    "YCbCr": (stored(Image.new("YCbCr", (8, 8), (128, 128, 128)), "tiff"), (128, 128, 128)),
    "LAB": (stored(Image.new("LAB", (8, 8), (255, 128, 128)), "tiff"), (255, 255, 255)),
    "frames": (
        stored(Image.new("RGB", (4, 4), (255, 0, 0)), "gif", save_all=True, append_images=[Image.new("RGB", (4, 4))]),
        (255, 0, 0),
    ),
    "frames in PNG": (
        stored(Image.new("RGB", (4, 4), (255, 0, 0)), "png", save_all=True, append_images=[Image.new("RGB", (4, 4))]),
        (255, 0, 0),
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_the_mean_colour_for_the_model_is_right(name: str, tmp_path: Path) -> None:
    content, expected = MODES[name]
    (tmp_path / "image").write_bytes(content)
    image = read_image(tmp_path / "image")
    assert image.mode == "RGB"
    assert np.asarray(image).reshape(-1, 3).mean(0) == pytest.approx(expected, abs=0.01 if "dark" in name else 1)


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_modes_of_images_in_memory_are_converted(mode: str) -> None:
    source = Image.new("LA" if mode == "La" else "RGBA", (2, 2), (100, 51) if mode == "La" else (200, 0, 0, 51))
    image = source.convert("P").convert("PA") if mode == "PA" else source.convert(mode)
    expected = {"La": (224, 224, 224), "RGBa": (244, 204, 204)}.get(mode)
    assert expected is None or as_rgb(image).getpixel((0, 0)) == pytest.approx(expected, abs=1)
    assert as_rgb(image).mode == "RGB"


@pytest.mark.parametrize(
    ("depth", "channels", "transparent", "other", "seen"),
    [
        (1, 1, 1, 0, 0),
        (2, 1, 2, 1, 85),
        (4, 1, 9, 1, 17),
        (8, 1, 9, 8, 8),
        (16, 1, 1000, 1001, 4),
        (8, 3, 9, 8, 8),
        (16, 3, 1000, 30000, 117),
        (16, 3, 1000, 1001, 3),
    ],
)
def test_a_transparent_colour_of_any_depth_is_white(
    depth: int, channels: int, transparent: int, other: int, seen: int
) -> None:
    def values(*of: int) -> str:
        return "".join(format(value, f"0{depth}b") * channels for value in of)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = values(transparent, other)
    row += "0" * (-len(row) % 8)
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, 2 if channels == 3 else 0, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">H", transparent) * channels),
            chunk(b"IDAT", zlib.compress(bytes(1) + int(row, 2).to_bytes(len(row) // 8))),
            chunk(b"IEND", b""),
        )
    )
    assert np.asarray(decode_or_read(content)).tolist() == [[[255] * 3, [seen] * 3]]


def test_sixteen_bits_are_rounded_to_the_nearest_of_eight() -> None:
    every = np.arange(1 << 16).reshape(256, 256)
    expected = np.floor(every / 257 + 0.5)
    for dtype, kind in ((np.uint16, "png"), (np.int32, "ppm")):
        seen = np.asarray(decode_or_read(stored(ramp(every, dtype), kind)))[..., 0]
        assert (seen == expected).all(), kind


def decode_or_read(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return as_rgb(image)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "I;16"])
def test_images_are_rotated_by_their_exif_orientation(orientation: int, kind: str, tmp_path: Path) -> None:
    """The top left corner of the upright image is dark, by the table of the EXIF standard."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.full((16, 32), 255)
    # The stored position of the visual top left: row 0 may be the top, the bottom or a side, and column 0 too.
    rows, columns = {
        2: (slice(0, 8), slice(24, 32)),
        3: (slice(8, 16), slice(24, 32)),
        4: (slice(8, 16), slice(0, 8)),
        5: (slice(0, 8), slice(0, 8)),
        6: (slice(8, 16), slice(0, 8)),
        7: (slice(8, 16), slice(24, 32)),
        8: (slice(0, 8), slice(24, 32)),
    }[orientation]
    pixels[rows, columns] = 0
    image = ramp(pixels * 257, np.uint16) if kind == "I;16" else ramp(pixels, np.uint8)
    (tmp_path / "image").write_bytes(stored(image, "png" if kind == "I;16" else kind, exif=exif))
    seen = np.asarray(read_image(tmp_path / "image"))[..., 0]
    assert seen.shape == ((32, 16) if orientation > 4 else (16, 32))
    assert seen[:8, :8].mean() < 5
    assert seen[8:, 8:].mean() > 250


@pytest.mark.parametrize(
    ("width", "height", "taken"),
    [(200, 1, True), (201, 1, False), (1, 201, False), (1, 40_000, False), (40_000, 1, False), (2, 400, True)],
)
def test_extreme_aspect_ratios_are_refused(width: int, height: int, taken: bool) -> None:
    content = stored(Image.new("1", (width, height)), "png")
    assert len(content) < 200
    if taken:
        assert decode_image(content, "it", 100_000).size == (width, height)
        return
    with pytest.raises(UsageError, match=f"it: has {width} × {height} pixels, one side more than 200 times the other"):
        decode_image(content, "it", 100_000)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[-1.0, 1.0]]), "from -1 to 1"),
        (np.array([[0.0, np.nan]]), "from nan to nan"),
        (np.array([[0.0, 1e9]]), "from 0 to 1e"),
    ],
)
def test_values_without_a_scale_are_refused(values: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(stored(ramp(values, np.float32), "tiff"))
    with pytest.raises(UsageError, match=rf"a\.tif: holds values {words}"):
        read_image(tmp_path / "a.tif")


def test_files_that_are_not_images_or_start_programs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(stored(Image.new("RGB", (4, 4)), "eps"))
    with pytest.raises(UsageError, match="is not an image"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UsageError) as missing:
        read_image(tmp_path / "b.png")
    assert str(missing.value) == f"{tmp_path / 'b.png'}: cannot be read (No such file or directory); check the file."
    (tmp_path / "c.png").write_bytes(stored(Image.effect_noise((64, 64), 9), "png")[:900])
    with pytest.raises(UsageError, match=r"c\.png: cannot be read \(.*truncated"):
        read_image(tmp_path / "c.png")


def test_images_that_all_readers_read_equally_are_recognised() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = Image.new("RGB", (4, 4))
    assert is_plain(stored(plain, "jpeg"))
    assert is_plain(stored(plain, "png"))
    assert not is_plain(stored(plain, "jpeg", exif=exif))
    for name in ("I;16 in PNG", "RGBA, half", "RGB with a transparent colour", "frames in PNG", "P"):
        assert not is_plain(MODES[name][0]), name


@given(st.sampled_from(sorted(MODES)), st.data())
def test_broken_files_are_read_or_refused(name: str, data: st.DataObject) -> None:
    content = bytearray(MODES[name][0])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of Pillow about unusual files
        with suppress(UsageError):
            assert decode_image(bytes(content), "it", 100_000).mode == "RGB"


def test_broken_exif_data_are_ignored_without_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    # The header announces two entries, and the first one is truncated.
    Image.new("RGB", (4, 4)).save(file, exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert read_image(file).size == (4, 4)
    assert said == []
