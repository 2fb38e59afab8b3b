"""Find the second images of a contrast in a file, a directory, or a list of pairs, or by a user's function."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qkedit.errors import UsageError
from qkedit.images import as_rgb, read_image
from qkedit.strict_text import parse_json

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PAIRS = ".jsonl"


class Provider(Protocol):
    """A function from a picture to its second image."""

    def __call__(self, picture: Image, /) -> Image:
        """Return the second image, of any size."""
        ...


SecondImages = Callable[["Image", str, "torch.device"], "Image"]
"""A function from a picture, the question about it ("" if it is unknown) and the request's device to its second
image."""


@dataclass(frozen=True)
class OneForAll:
    """The same second image for every picture."""

    image: Image

    def __call__(self, picture: Image, /) -> Image:
        """Return the second image."""
        return self.image


@dataclass(frozen=True)
class ByFileName:
    """Second images by the file name of the first.

    Attributes:
        where: the user's name for the place in errors.
        find: a function that returns the file of the second image for the last parts of a picture's path,
            "street.jpg" or "town/street.jpg"; None if there is none.
    """

    where: str
    find: Callable[[Path], Path | None]

    def __call__(self, picture: Image, /) -> Image:
        """Return the second image in the file that belongs to a picture's file. Raises UsageError without one."""
        name = os.fsdecode(getattr(picture, "filename", ""))
        if not name:
            raise self.unnamed()
        return read_image(self.file(Path(name))[1])

    def file(self, picture: Path) -> tuple[Path, Path]:
        """Return the last parts of a picture's path by which its second image was found, and the second image's file.

        Raises:
            UsageError: there is none.
        """
        for end in _ends(picture):
            if (found := self.find(end)) is not None:
                return end, found
        raise UsageError(f"has no second image for {picture.name}", where=self.where, remedy="add it")

    def unnamed(self) -> UsageError:
        """Return the error for a picture that was not read from a file."""
        return UsageError(
            "second images are found by file name, and this picture does not come from a file",
            where=self.where,
            remedy="give one image for all pictures, or a function in Python (docs/rivals.md)",
        )


def provider_of(second: str | Path | Provider, where: str) -> Provider:
    """Return the function that finds second images in a file or directory, or the given function.

    Args:
        second: one image for all pictures; a directory with images of the same names, or of the same names with
            another extension; JSON lines `{"image": "street.jpg", "second": "masked/street.png"}`, with second images
            relative to that file; or a function.
        where: the option's name in errors.

    Raises:
        UsageError: the file or directory does not exist or is invalid.
    """
    if not isinstance(second, str | Path):
        return _Checked(second, where)
    if not str(second):
        raise UsageError(
            "there are no second images", where=where, remedy="give an image, a directory, or a .jsonl file of pairs"
        )
    place = Path(second).expanduser()
    if place.is_dir():
        return ByFileName(str(place), lambda end: _in_directory(place, end))
    if place.suffix.lower() == PAIRS:
        pairs = _pairs_in(place)
        return ByFileName(str(place), pairs.get)
    return OneForAll(read_image(place))


@dataclass(frozen=True)
class _Checked:
    """A user's function whose result is checked and converted to RGB."""

    function: Provider
    where: str

    def __call__(self, picture: Image, /) -> Image:
        from PIL import Image

        second: Any = self.function(picture)
        if not isinstance(second, Image.Image):
            raise UsageError(
                f"the function returned {type(second).__name__}", where=self.where, remedy="return a Pillow image"
            )
        return as_rgb(second, self.where)


def _ends(picture: Path) -> Iterator[Path]:
    """Yield the last parts of a path, the longest first."""
    parts = picture.absolute().parts
    yield from (Path(*parts[start:]) for start in range(len(parts)))


def _in_directory(directory: Path, end: Path) -> Path | None:
    if end.is_absolute():
        return None
    file = directory / end
    if file.is_file():
        return file
    alike = [other for other in file.parent.glob("*") if other.stem == file.stem and other.is_file()]
    if len(alike) > 1:
        raise UsageError(
            f"has {len(alike)} second images for {end}", where=str(directory), remedy="keep only one of them"
        )
    return alike[0] if alike else None


def _pairs_in(file: Path) -> Mapping[Path, Path]:
    pairs: dict[Path, Path] = {}
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", where=str(file), remedy="check the path") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            pair = parse_json(line, file_names=True)
        except ValueError:
            pair = None
        if (
            not isinstance(pair, dict)
            or pair.keys() != {"image", "second"}
            or not all(isinstance(name, str) and name and "\0" not in name for name in pair.values())
        ):
            raise UsageError(
                f"line {number} is not a pair of images",
                where=str(file),
                remedy='write {"image": "street.jpg", "second": "masked/street.png"}',
            )
        name = Path(pair["image"])
        if name in pairs:
            raise UsageError(f"line {number} names {name} again", where=str(file), remedy="name each image once")
        pairs[name] = file.parent / pair["second"]
    return pairs
