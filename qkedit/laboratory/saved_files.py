"""Write an experiment as files that other tools read: scenes, questions, answers and scores in their usual formats.

scenes/                     as `qkedit.demo.files` writes them: pictures, depth, COCO's and POPE's formats
base/result.json            the arm's scores, as `qkedit score --json` prints them and `qkedit compare` reads them
base/captions.json          its captions, as COCO's result format has them
base/pope_random.jsonl …    its answers, with POPE's question ids
edited/ …                   and so on, one directory per arm
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.staging import StagedDirectory
from qkedit.checkpoint.io.target import locate
from qkedit.checkpoint.io.whole_file import check_writable
from qkedit.demo.files import write_scenes
from qkedit.errors import UsageError
from qkedit.evaluation.files.result_files import RESULT_FILE
from qkedit.evaluation.files.score_json import score_as_dict
from qkedit.laboratory.answering.generation import EvalSetAnswers
from qkedit.laboratory.eval_set import EvalSet
from qkedit.laboratory.measures import Outcome
from qkedit.laboratory.scoring import answers_by_split
from qkedit.strict_text import json_lines, json_text

SCHEMA = 1


def check_place(directory: Path) -> None:
    """Refuse a path that could not be saved to, before any work is done.

    Raises:
        UsageError: the path exists, or cannot be created.
        QkeditError: the system does not permit writing there.
    """
    target = locate(directory)
    if os.path.lexists(target):
        raise UsageError("already exists", where=f"--save {directory}", remedy="name a new directory")
    existing = next(place for place in target.parents if place.is_dir())
    check_writable(existing, target)


def save(directory: Path, eval_set: EvalSet, arms: Sequence[tuple[Outcome, EvalSetAnswers]]) -> None:
    """Write an experiment into a new directory, which appears finished or not at all.

    Raises:
        UsageError: the directory exists or cannot be made there.
        QkeditError: it cannot be written.
    """
    with StagedDirectory(directory, overwrite=False) as staged, explained("write the files", directory):
        write_scenes(eval_set.scenes, staged.path / "scenes")
        for outcome, answers in arms:
            place = staged.path / directory_name(outcome.arm.name)
            place.mkdir()
            _write_arm(place, eval_set, outcome, answers)
        staged.commit(fsync=False)


def directory_name(arm: str) -> str:
    """Return an arm's name as that of a directory: `edited + SCR` is `edited-scr`."""
    return re.sub(r"[^a-z0-9.]+", "-", arm.lower()).strip("-")


def _write_arm(place: Path, eval_set: EvalSet, outcome: Outcome, answers: EvalSetAnswers) -> None:
    result = {
        "schema": SCHEMA,
        "command": "demo",
        "status": "done",
        "warnings": [],
        "arm": outcome.arm.as_dict(),
        "results": [score_as_dict(score) for score in outcome.scores.values()],
    }
    _write(place / RESULT_FILE, json_text(result, indent=1))
    captions = [
        {"image_id": scene.number, "caption": caption}
        for scene, caption in zip(eval_set.scenes, answers.captions, strict=True)
    ]
    _write(place / "captions.json", json_text(captions, indent=1, ascii_only=False))
    for split, given in answers_by_split(eval_set, answers).items():
        rows = [{"question_id": int(answer.id), "answer": answer.text} for answer in given]
        _write(place / f"pope_{split}.jsonl", json_lines(rows, ascii_only=False))


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", newline="\n")
