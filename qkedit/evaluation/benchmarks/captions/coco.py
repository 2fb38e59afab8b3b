"""Captions of COCO's images: files of them, and the images' ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qkedit.evaluation.files.answer_files import read_answers
from qkedit.evaluation.files.json_rows import read_rows
from qkedit.evaluation.files.records import FINISH_REASON, Answer

# Below the user's data directory: where COCO's annotation files may lie, apart from a folder by a benchmark's name.
ANNOTATION_PLACES = ("annotations", "coco", "coco/annotations")
# Under which keys a document may hold its captions: those of published examples, and CHAIR's official script's output.
_CAPTION_LISTS = ("captions", "sentences")
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?0*(\d+)(?:\.jpg)?")


def load_answers(file: Path) -> tuple[Answer, ...]:
    """Return captions in COCO's format for results, rows of `image_id` and `caption`, or in the common one.

    An id may also be the name of COCO's image. Whatever a row says of the prompt is passed over, as captions are
    published with several.

    Raises:
        QkeditError: the file cannot be read or a row is broken; file and line are named.
    """
    rows = read_rows(file, within=_CAPTION_LISTS)
    answers = read_answers(file, ids=("image_id",), texts=("caption",), rows=rows)
    return tuple(replace(answer, id=image_id(answer.id), fields=_kept(answer.fields)) for answer in answers)


def image_id(name: str) -> str:
    """Return the number in the name of one of COCO's images; any other name stands for itself."""
    coco = _COCO_NAME.fullmatch(name)
    return coco[1] if coco else name


def _kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {FINISH_REASON: fields[FINISH_REASON]} if FINISH_REASON in fields else {}
