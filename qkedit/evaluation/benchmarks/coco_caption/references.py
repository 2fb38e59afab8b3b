"""Read reference captions in COCO's annotation format: `captions_val2014.json`, or the user's own files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.captions.coco import ANNOTATION_PLACES, image_id
from qkedit.evaluation.files.json_rows import LONGEST_TEXT, read_object

PLACES = ("coco-caption", *ANNOTATION_PLACES)
_USED_KEYS = frozenset(("images", "annotations", "id", "file_name", "image_id", "caption"))


@dataclass(frozen=True)
class ReferencedImage:
    """An image's file name and its reference captions."""

    file_name: str
    captions: list[str] = field(default_factory=list)


# Image id → its references, in the order of the file's images, as in the official script.
References = dict[str, ReferencedImage]


def load_references(data: Path, split: str | None) -> References:
    """Return the references of all files, or of the file that a split names: `val2014` for `captions_val2014.json`.

    Raises:
        UsageError: there is no such split.
        QkeditError: there is no file, or one is broken.
    """
    files = {_split_of(file): file for file in find_files(data)}
    if split is not None and split not in files:
        raise UsageError(
            f"there is no split {split!r}", where=str(data), remedy=f"choose one of {', '.join(sorted(files))}"
        )
    found: References = {}
    for name, file in files.items():
        if split in (None, name):
            for image, own in read_references(file).items():
                if found.setdefault(image, own) != own:
                    raise QkeditError(
                        f"another file has different captions for the image {image!r}",
                        where=str(file),
                        remedy="choose one of the two with --split",
                    )
    return found


def find_files(data: Path) -> list[Path]:
    """Return the annotation files in a directory, or the named file. Raises QkeditError if there is none."""
    if data.is_file():
        return [data]
    for place in ("", *PLACES):
        files = sorted((data / place).glob("captions*.json")) + sorted((data / place).glob("captions*.json.gz"))
        if files:
            return files
    raise QkeditError(
        "has no reference captions",
        where=str(data),
        remedy="put COCO's captions_val2014.json there, from cocodataset.org",
    )


def read_references(file: Path) -> References:
    """Return the references of one file. Images without a caption are left out. Raises QkeditError."""
    document = read_object(file, keys=_USED_KEYS)
    try:
        images = {_identifier(image["id"]): ReferencedImage(_text(image["file_name"])) for image in document["images"]}
        for annotation in document["annotations"]:
            image = images.get(_identifier(annotation["image_id"]))
            if image is not None:
                image.captions.append(_text(annotation["caption"]))
    except (KeyError, TypeError, AttributeError):
        raise QkeditError(
            "is not a COCO annotation file of captions", where=str(file), remedy="download it from cocodataset.org"
        ) from None
    found = {name: image for name, image in images.items() if image.captions}
    if not found:
        raise QkeditError("has no captions of its images", where=str(file), remedy="name another file")
    return found


def _identifier(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or len(str(value)) > 1000:
        raise TypeError
    return image_id(str(value))


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise TypeError
    return value


def _split_of(file: Path) -> str:
    name = file.name.removesuffix(".gz").removesuffix(".json")
    return name.removeprefix("captions").strip("_") or name
