"""Read captions of COCO's images, and the images' ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qkedit.evaluation.files.answer_files import read_answers
from qkedit.evaluation.files.json_rows import read_rows
from qkedit.evaluation.files.records import FINISH_REASON, Answer

# The folders below the user's data directory that may hold COCO's annotation files, next to one named after a
# benchmark.
ANNOTATION_PLACES = ("annotations", "coco", "coco/annotations")
# The keys that may hold the captions of a document: those of published examples, and of the output of CHAIR's
# official script.
_CAPTION_LISTS = ("captions", "sentences")
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?0*(\d+)(?:\.jpg)?")


def load_answers(file: Path) -> tuple[Answer, ...]:
    """Return captions in COCO's format for results, rows of `image_id` and `caption`, or in the common one.

    An id may also be the file name of COCO's image. The prompt in a row is ignored, since captions are published with
    several prompts.

    Raises:
        QkeditError: the file cannot be read or a row is broken; file and line are named.
    """
    rows = read_rows(file, within=_CAPTION_LISTS)
    answers = read_answers(file, ids=("image_id",), texts=("caption",), rows=rows)
    return tuple(replace(answer, id=image_id(answer.id), fields=_kept(answer.fields)) for answer in answers)


def image_id(name: str) -> str:
    """Return the number in the file name of a COCO image; any other name is returned unchanged."""
    coco = _COCO_NAME.fullmatch(name)
    return coco[1] if coco else name


def _kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {FINISH_REASON: fields[FINISH_REASON]} if FINISH_REASON in fields else {}
