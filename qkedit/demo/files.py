"""Write scenes in the formats of the published data sets, so that any tool for those can read them.

images/scene_000000.png …     the images
depth/scene_000000.npy …      their true depth, float32 [H, W], 0 at the front and 1 at the back
instances.json                objects, as in COCO's instance annotations
captions.json                 one caption per image, as in COCO's caption annotations
pope_random.json …            questions, one JSON object per line, as in POPE
questions.jsonl               one request per image to describe it, with the objects that it shows, in the format of
                              `qkedit eval --benchmark custom`
choices.jsonl                 which of two objects is nearest, farthest, smallest or largest, in the format of
                              `qkedit eval --benchmark choice`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qkedit.demo.depth_questions import depth_questions
from qkedit.demo.questions import SPLITS, image_file, pope_questions
from qkedit.demo.scenes import CAPTION_PROMPT, IMAGE_SIZE, Scene
from qkedit.demo.worlds import DEFAULT_WORLD
from qkedit.strict_text import json_lines, json_text


def write_scenes(scenes: Sequence[Scene], directory: Path, seed: int = 0) -> None:
    """Write images, depths, annotations, captions and questions into a directory, and create it.

    Args:
        scenes: scenes of one world, with distinct numbers.
        directory: the directory to write to.
        seed: the seed of the questions.
    """
    for folder in ("images", "depth"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        name = image_file(scene)
        Image.fromarray(scene.image).save(directory / "images" / name)
        np.save(directory / "depth" / Path(name).with_suffix(".npy"), scene.depth)
    _write_json(directory / "instances.json", coco_instances(scenes))
    _write_json(directory / "captions.json", coco_captions(scenes))
    for split in SPLITS:
        lines = json_lines(pope_questions(scenes, split, seed))
        (directory / f"pope_{split}.json").write_text(lines, encoding="utf-8")
    (directory / "questions.jsonl").write_text(json_lines(caption_questions(scenes)), encoding="utf-8")
    choices = json_lines([question.as_row() for question in depth_questions(scenes)])
    (directory / "choices.jsonl").write_text(choices, encoding="utf-8")


def coco_instances(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return the scenes' objects in the layout of COCO's instance annotations; boxes are left, top, width, height.

    A group of objects is one annotation, with `iscrowd` 1 and a `count`. All scenes must be of the same world.
    """
    world = scenes[0].world if scenes else DEFAULT_WORLD
    number = {kind: index for index, kind in enumerate(world.kinds, start=1)}
    theme = {kind: name for name, kinds in world.themes.items() for kind in kinds}
    annotations: list[dict[str, Any]] = []
    for scene in scenes:
        for position, thing in enumerate(scene.objects):
            left, top, right, bottom = thing.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": scene.number,
                    "category_id": number[thing.kind],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int((scene.instances == position).sum()),
                    "iscrowd": int(thing.count > 1),
                    "depth": thing.depth,
                    "visible": thing.visible,
                    "contrast": thing.contrast,
                    **({"colour": thing.colour, "count": thing.count} if thing.colour else {}),
                }
            )
    return {
        "images": _images(scenes),
        "annotations": annotations,
        "categories": [{"id": number[kind], "name": kind, "supercategory": theme[kind]} for kind in world.kinds],
    }


def coco_captions(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return the scenes' captions in the layout of COCO's caption annotations."""
    return {
        "images": _images(scenes),
        "annotations": [
            {"id": index, "image_id": scene.number, "caption": scene.caption}
            for index, scene in enumerate(scenes, start=1)
        ],
    }


def caption_questions(scenes: Sequence[Scene]) -> list[dict[str, Any]]:
    """Return a request to describe each image, in the format of custom questions."""
    return [
        {"id": scene.number, "image": image_file(scene), "question": CAPTION_PROMPT, "truth": list(scene.kinds)}
        for scene in scenes
    ]


def _images(scenes: Sequence[Scene]) -> list[dict[str, Any]]:
    return [
        {"id": scene.number, "file_name": image_file(scene), "width": IMAGE_SIZE, "height": IMAGE_SIZE}
        for scene in scenes
    ]


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json_text(content, indent=1), encoding="utf-8")
