"""Test scenes: seeded, with ground truth that agrees with the pixels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qkedit.demo.depth_questions import depth_questions
from qkedit.demo.files import write_scenes
from qkedit.demo.questions import SPLITS, image_file, pope_questions
from qkedit.demo.scenes import IMAGE_SIZE, Scene, make_scene, make_scenes, mentions
from qkedit.demo.worlds import SMALL
from qkedit.evaluation.benchmarks import choice
from qkedit.evaluation.benchmarks.custom import load_questions


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(make_scenes(150, seed=11, world=SMALL))


def test_a_scene_depends_on_seed_and_number_only(scenes: list[Scene]) -> None:
    again = make_scene(11, 7, world=SMALL)
    assert again.objects == scenes[7].objects
    np.testing.assert_array_equal(again.image, scenes[7].image)
    assert not np.array_equal(again.image, make_scene(12, 7, world=SMALL).image)


def test_one_to_five_objects_are_ordered_by_depth(scenes: list[Scene]) -> None:
    for scene in scenes:
        depths = [thing.depth for thing in scene.objects]
        assert 1 <= len(depths) <= 5
        assert depths == sorted(depths)
        assert len(set(scene.kinds)) == len(scene.kinds)
    assert {len(scene.objects) for scene in scenes} >= {1, 2, 3, 4}


def test_each_pixel_has_the_depth_of_its_object(scenes: list[Scene]) -> None:
    for scene in scenes:
        for number, thing in enumerate(scene.objects):
            shown = scene.instances == number
            assert np.all(scene.depth[shown] == np.float32(thing.depth))
            rows, columns = np.nonzero(shown)
            left, top, right, bottom = thing.box
            if shown.any():
                assert left <= columns.min() <= columns.max() < right
                assert top <= rows.min() <= rows.max() < bottom
        ground = scene.depth[scene.instances < 0]
        assert ground.min() >= 0
        assert ground.max() <= 1


def test_only_objects_behind_others_are_covered(scenes: list[Scene]) -> None:
    assert all(scene.objects[0].visible == 1 for scene in scenes)
    assert sum(thing.visible < 0.7 for scene in scenes for thing in scene.objects) > 5


def test_an_object_changes_the_pixels_of_its_instance(scenes: list[Scene]) -> None:
    """A plain, opaque object differs from its background."""
    scene = next(scene for scene in scenes if scene.objects[0].contrast > 0.9)
    shown = scene.instances == 0
    around = scene.image[scene.instances < 0].mean(0)
    assert np.abs(scene.image[shown].mean(0) - around).max() > 15


def test_objects_of_one_theme_occur_together(scenes: list[Scene]) -> None:
    both = Counter()
    for scene in scenes:
        anchor, partner, *_ = SMALL.themes[scene.theme]
        both[anchor in scene.kinds, partner in scene.kinds] += 1
    with_anchor = both[True, True] / (both[True, True] + both[True, False])
    without = both[False, True] / (both[False, True] + both[False, False])
    assert with_anchor > without + 0.2


def test_a_caption_mentions_exactly_the_objects_of_the_scene(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert mentions(scene.caption) == scene.kinds
        assert scene.caption.startswith(f"A {scene.theme} with a")


@given(st.lists(st.sampled_from([*SMALL.kinds, "kitchen", "and", "cupboard", "a", "carpet"])))
def test_mentions_are_whole_words_in_order(words: list[str]) -> None:
    assert mentions(" ".join(words).title()) == tuple(word for word in words if word in SMALL.kinds)


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_balanced_and_true(scenes: list[Scene], split: str) -> None:
    rows = pope_questions(scenes, split)
    shown = {image_file(scene): scene.kinds for scene in scenes}
    assert [row["question_id"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        (kind,) = mentions(row["text"])
        assert (kind in shown[row["image"]]) == (row["label"] == "yes")
    labels = Counter(row["label"] for row in rows)
    assert labels["yes"] == labels["no"] == sum(min(3, len(scene.kinds)) for scene in scenes)
    assert len({(row["image"], row["text"]) for row in rows}) == len(rows)


def test_absent_objects_follow_the_rule_of_their_split(scenes: list[Scene]) -> None:
    """Count how often an absent kind occurs in other scenes, and together with this scene's kinds."""

    def popularity(kind: str) -> int:
        return sum(kind in scene.kinds for scene in scenes)

    def company(kind: str, shown: tuple[str, ...]) -> int:
        return sum((kind in scene.kinds) and (other in scene.kinds) for scene in scenes for other in shown)

    for scene in scenes[:20]:
        absent = [kind for kind in SMALL.kinds if kind not in scene.kinds]
        asked = {
            split: [
                mentions(row["text"])[0]
                for row in pope_questions(scenes, split)
                if row["image"] == image_file(scene) and row["label"] == "no"
            ]
            for split in ("popular", "adversarial")
        }
        best = sorted((popularity(kind) for kind in absent), reverse=True)
        assert [popularity(kind) for kind in asked["popular"]] == best[: len(asked["popular"])]
        closest = sorted((company(kind, scene.kinds) for kind in absent), reverse=True)
        assert [company(kind, scene.kinds) for kind in asked["adversarial"]] == closest[: len(asked["adversarial"])]


def test_an_unknown_split_is_refused(scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match="there are random, popular, adversarial"):
        pope_questions(scenes, "easy")


def test_scenes_are_written_in_published_formats(scenes: list[Scene], tmp_path: Path) -> None:
    few = scenes[:5]
    write_scenes(few, tmp_path)
    instances = json.loads((tmp_path / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    for scene, image in zip(few, instances["images"], strict=True):
        with Image.open(tmp_path / "images" / image["file_name"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), scene.image)
            assert picture.size == (image["width"], image["height"]) == (IMAGE_SIZE, IMAGE_SIZE)
        depth = np.load(tmp_path / "depth" / image["file_name"].replace(".png", ".npy"))
        np.testing.assert_array_equal(depth, scene.depth)
        found = [entry for entry in instances["annotations"] if entry["image_id"] == image["id"]]
        assert tuple(names[entry["category_id"]] for entry in found) == scene.kinds
        assert [entry["bbox"][2] for entry in found] == [thing.box[2] - thing.box[0] for thing in scene.objects]
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert [entry["caption"] for entry in captions["annotations"]] == [scene.caption for scene in few]
    for split in SPLITS:
        lines = (tmp_path / f"pope_{split}.json").read_text().splitlines()
        assert [json.loads(line) for line in lines] == pope_questions(few, split)
    asked = [json.loads(line) for line in (tmp_path / "choices.jsonl").read_text().splitlines()]
    assert asked == [question.as_row() for question in depth_questions(few)]
    assert [(one.prompt, one.truth) for one in choice.load_questions(tmp_path)] == [
        (row["question"], row["truth"]) for row in asked
    ]
    requests = load_questions(tmp_path)
    assert [(question.image, question.truth) for question in requests] == [
        (image["file_name"], scene.kinds) for image, scene in zip(instances["images"], few, strict=True)
    ]
