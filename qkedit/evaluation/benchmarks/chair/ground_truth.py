"""The true objects of COCO's images, by CHAIR's rule: the instances' categories and the reference captions' objects.

The ground truth is read from a file made before (`*_gt_objects.json`, compressed or not), or built from COCO's own
annotation files (`instances_val2014.json` and `captions_val2014.json`, or those of train). The pickle of CHAIR's
script is never read: a pickle can run any code.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkedit.checkpoint.io.whole_file import write_whole
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.captions.coco import ANNOTATION_PLACES
from qkedit.evaluation.benchmarks.chair.words import Reader, Synonyms
from qkedit.evaluation.files.json_rows import read_object

# The folders below the user's directory: itself, one named after the benchmark, and that of COCO's archive.
PLACES = ("chair", *ANNOTATION_PLACES)
TRUTH_ENDINGS = ("_gt_objects.json", "_gt_objects.json.gz")
# The fields to keep of COCO's annotation files; outlines of instances are most of their bytes.
_USED_KEYS = frozenset(
    ("categories", "images", "annotations", "id", "name", "file_name", "image_id", "category_id", "caption")
)


@dataclass(frozen=True)
class ImageTruth:
    """An image's file name and the distinct objects it shows, in the order of the table of synonyms."""

    image: str
    objects: tuple[str, ...]


# Image id → the objects in the image.
Truth = dict[str, ImageTruth]


@dataclass(frozen=True)
class TruthSource:
    """The source of one part of the ground truth: a file of objects, or two annotation files.

    Attributes:
        split: the part's name, such as `coco_val500` or `val2014`.
    """

    split: str
    files: tuple[Path, ...]

    def load(self, synonyms: Synonyms, read: Reader) -> Truth:
        """Return the ground truth. Raises QkeditError if a file does not hold what its name says."""
        if len(self.files) == 1:
            return read_truth(self.files[0], synonyms)
        instances, captions = (read_object(file, keys=_USED_KEYS) for file in self.files)
        try:
            return build_truth(instances, captions, synonyms, read)
        except QkeditError as error:
            file = self.files[error.where == "captions"]
            raise QkeditError(error.what, where=str(file), remedy=error.remedy) from None


def find_sources(data: Path) -> tuple[TruthSource, ...]:
    """Return the sources of the ground truth: files of objects, or if there are none, pairs of annotation files.

    Raises:
        QkeditError: there are no such files.
    """
    if data.is_file():
        _refuse_pickle(data)
        return (TruthSource(_truth_name(data), (data,)),)
    directories = [data / place for place in ("", *PLACES)]
    objects = [file for directory in directories for file in sorted(directory.glob("*_gt_objects.json*"))]
    sources = [TruthSource(_truth_name(file), (file,)) for file in objects if file.name.endswith(TRUTH_ENDINGS)]
    if not sources:
        instances = [file for directory in directories for file in sorted(directory.glob("instances*.json"))]
        pairs = [(file, file.with_name(file.name.replace("instances", "captions", 1))) for file in instances]
        sources = [
            TruthSource(pair[0].stem.removeprefix("instances").strip("_"), pair) for pair in pairs if pair[1].is_file()
        ]
    if not sources:
        for directory in directories:
            for file in sorted(directory.glob("*.pkl")):
                _refuse_pickle(file)
        raise QkeditError(
            "has no ground truth for CHAIR",
            where=str(data),
            remedy="put COCO's instances_val2014.json and captions_val2014.json there, from cocodataset.org",
        )
    return tuple(sources)


def load_truth(data: Path, split: str | None, synonyms: Synonyms, read: Reader) -> Truth:
    """Return the truth of one split, or of all splits in the directory.

    Raises:
        UsageError: there is no such split.
        QkeditError: a file is missing or broken, or two files disagree about an image.
    """
    sources = find_sources(data)
    chosen = [source for source in sources if split in (None, source.split)]
    if not chosen:
        names = ", ".join(source.split for source in sources)
        raise UsageError(f"there is no split {split!r}", where=str(data), remedy=f"choose one of {names}")
    truth: Truth = {}
    for source in chosen:
        for image, shown in source.load(synonyms, read).items():
            if truth.setdefault(image, shown).objects != shown.objects:
                raise QkeditError(
                    f"another file disagrees about the image {image!r}",
                    where=str(source.files[0]),
                    remedy="choose one of the two with --split",
                )
    return truth


def read_truth(file: Path, synonyms: Synonyms) -> Truth:
    """Return the truth that a file of objects holds.

    The file holds `{image id: [object, …]}`, or `{"categories": [object, …], "images": {image id: [index, …]}}`.

    Raises:
        QkeditError: the file has another format, or names an object that is not in the synonyms.
    """
    document = read_object(file)
    try:
        if "categories" in document:
            names = document["categories"]
            shown = {image: [names[place] for place in places] for image, places in document["images"].items()}
        else:
            shown = {image: list(objects) for image, objects in document.items()}
        known = frozenset(synonyms.objects)
        unknown = {name for objects in shown.values() for name in objects} - known
    except (KeyError, IndexError, TypeError, AttributeError):
        raise QkeditError(
            "is not a file of the objects in images", where=str(file), remedy="see docs/evaluation.md"
        ) from None
    if unknown:
        raise QkeditError(
            f"names an object that is not in the synonyms: {min(map(str, unknown))!r}",
            where=str(file),
            remedy="name the table of synonyms that belongs to it",
        )
    return {image: ImageTruth(_file_name(image), synonyms.in_order(objects)) for image, objects in shown.items()}


def save_truth(truth: Truth, file: Path) -> None:
    """Write the truth as a file of objects, compressed if its name ends in `.gz`; `read_truth` reads it.

    Raises:
        UsageError: the file's name has another ending.
        QkeditError: the file cannot be written.
    """
    if not file.name.endswith(TRUTH_ENDINGS):
        raise UsageError("the name does not end in _gt_objects.json or _gt_objects.json.gz", where=str(file))
    text = json.dumps({image: shown.objects for image, shown in truth.items()}).encode()
    # Without a time in the header, the same truth gives the same bytes.
    write_whole(file, gzip.compress(text, mtime=0) if file.suffix == ".gz" else text)


def build_truth(instances: Mapping[str, Any], captions: Mapping[str, Any], synonyms: Synonyms, read: Reader) -> Truth:
    """Return the truth of all images of two COCO annotation files.

    Args:
        instances: the annotations of objects.
        captions: the reference captions of the same images.
        synonyms: the object that each word means; category names are such words.
        read: the reader of captions; each variant builds its truth with its own reader.

    Raises:
        QkeditError: a file has another form, or the synonyms lack a category; `where` names the file.
    """
    shown: dict[str, set[str]] = defaultdict(set)
    names: dict[str, str] = {}
    for kind, annotated in (("instances", instances), ("captions", captions)):
        try:
            for image in annotated["images"]:
                names[str(image["id"])] = str(image["file_name"])
            if kind == "instances":
                _add_categories(shown, annotated, synonyms)
            else:
                for annotation in annotated["annotations"]:
                    shown[str(annotation["image_id"])].update(read(annotation["caption"]).objects)
        except (KeyError, TypeError, AttributeError):
            raise QkeditError(
                f"is not a COCO annotation file of {kind}", where=kind, remedy="download it from cocodataset.org"
            ) from None
    return {
        image: ImageTruth(names.get(image) or _file_name(image), synonyms.in_order(shown[image]))
        for image in {**names, **dict.fromkeys(shown, "")}
    }


def _add_categories(shown: dict[str, set[str]], instances: Mapping[str, Any], synonyms: Synonyms) -> None:
    object_of: dict[int, str] = {}
    for category in instances["categories"]:
        name = category["name"]
        if name not in synonyms.object_of:
            raise QkeditError(
                f"the synonyms lack the category {name!r}",
                where="instances",
                remedy="name the table of synonyms that belongs to these images",
            )
        object_of[category["id"]] = synonyms.object_of[name]
    for annotation in instances["annotations"]:
        shown[str(annotation["image_id"])].add(object_of[annotation["category_id"]])


def _file_name(image: str) -> str:
    """Return COCO's file name of an image of val2014, the images of CHAIR."""
    return f"COCO_val2014_{int(image):012d}.jpg" if image.isdecimal() else image


def _truth_name(file: Path) -> str:
    return file.name.split("_gt_objects")[0].removesuffix(".json")


def _refuse_pickle(file: Path) -> None:
    if file.suffix == ".pkl":
        raise QkeditError(
            "is a pickle, which can run any code when it is loaded, so it is never read",
            where=str(file),
            remedy="put COCO's instances_val2014.json and captions_val2014.json in the data directory instead",
        )
