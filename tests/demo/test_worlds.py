"""Test the crowded world: captions and questions are true, and drawings agree with their records."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.demo import drawing
from qkedit.demo.captions import NUMBERS, plural, with_article
from qkedit.demo.depth_questions import depth_questions
from qkedit.demo.files import write_scenes
from qkedit.demo.questions import attribute_questions, pope_questions
from qkedit.demo.scenes import Scene, make_scene, make_scenes
from qkedit.demo.world import COLOUR_SHARES, COUNT_SHARES
from qkedit.demo.worlds import CROWDED, DEFAULT_WORLD, SMALL, WORLDS, world_name_for, world_named
from qkedit.errors import UsageError
from qkedit.laboratory.eval_set import SceneRange, make_eval_set


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(make_scenes(200, seed=3, world=CROWDED))


def understood(phrase: str) -> tuple[str, str, int]:
    """Return the kind, colour and number of a noun phrase, by looking up each word."""
    first, colour, noun = phrase.split()
    count = 1 if first in ("a", "an") else NUMBERS.index(first)
    kinds = [kind for kind in CROWDED.kinds if noun == (kind if count == 1 else plural(kind))]
    assert len(kinds) == 1, phrase
    return kinds[0], colour, count


def test_the_small_world_is_unchanged() -> None:
    digest = hashlib.sha256()
    for scene in make_scenes(20, 5, world=SMALL):
        digest.update(scene.image.tobytes() + scene.depth.tobytes() + scene.caption.encode())
    assert digest.hexdigest() == "0f4bd933692c8d0beb579508cdf48a39fc06d5dbc861ed1bc90fd611ee08cb4d"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), number=st.integers(0, 10**6))
def test_captions_agree_with_their_scenes(seed: int, number: int) -> None:
    """Read kinds, colours, numbers, sides and order from the text."""
    scene = make_scene(seed, number, CROWDED)
    assert 15 <= len(scene.caption.split()) <= 40
    found = re.fullmatch(r"A (\w+) with (.+) in front\. Behind them there (is|are) (.+)\.", scene.caption)
    assert found
    assert found[1] == scene.theme
    front = re.split(r", | and ", found[2])
    back = [
        re.fullmatch(r"(.+?) (on the left|in the middle|on the right)", part)
        for part in re.split(r", | and ", found[4])
    ]
    assert all(back)
    said = [*map(understood, front), *(understood(part[1]) for part in back if part)]
    assert said == [(thing.kind, thing.colour, thing.count) for thing in scene.objects]
    assert (found[3] == "are") == (said[len(front)][2] > 1)
    assert max(thing.depth for thing in scene.objects[: len(front)]) <= min(
        thing.depth for thing in scene.objects[len(front) :]
    )
    for part, thing in zip(back, scene.objects[len(front) :], strict=True):
        middle = (thing.box[0] + thing.box[2]) / 2 / scene.image.shape[1]
        low, high = {"on the left": (0, 1 / 3), "in the middle": (1 / 3, 2 / 3), "on the right": (2 / 3, 1)}[part[2]]
        assert low <= middle <= high
    assert CROWDED.mentions(scene.caption) == scene.kinds


def test_a_scene_has_three_to_six_kinds_with_colours_and_numbers(scenes: list[Scene]) -> None:
    colours, counts = Counter(), Counter()
    for scene in scenes:
        assert 3 <= len(scene.objects) <= 6
        assert len(set(scene.kinds)) == len(scene.kinds)
        for thing in scene.objects:
            colours[CROWDED.colours[thing.kind].index(thing.colour)] += 1
            if thing.kind in CROWDED.countable:
                counts[thing.count] += 1
            else:
                assert thing.count == 1
    for found, shares in ((colours, COLOUR_SHARES), (counts, COUNT_SHARES)):
        total = sum(found.values())
        assert [found[key] / total for key in sorted(found)] == pytest.approx(shares, abs=0.06)


def test_each_kind_has_a_shape_and_three_colours_that_can_be_drawn() -> None:
    assert len(CROWDED.kinds) == len(set(CROWDED.kinds)) == 36
    for kind in CROWDED.kinds:
        assert kind in drawing._ALL_SHAPES
        assert len(set(CROWDED.colours[kind])) == 3
    assert set(CROWDED.colour_names) <= set(drawing._COLOURS)
    assert set(CROWDED.themes) | set(SMALL.themes) == set(drawing._GROUNDS)
    assert CROWDED.countable <= set(CROWDED.kinds)


def test_objects_have_the_named_colour(scenes: list[Scene]) -> None:
    """More pixels of a plain object are nearest to its colour than to any other possible colour."""
    names = list(drawing._COLOURS)
    palette = np.array([drawing._COLOURS[name] for name in names], dtype=float)
    right, asked = 0, 0
    for scene in scenes:
        for index, thing in enumerate(scene.objects):
            if thing.contrast < 0.8 or thing.visible < 0.9:
                continue
            pixels = scene.image[scene.instances == index].astype(float)
            nearest = Counter(np.linalg.norm(pixels[:, None] - palette, axis=-1).argmin(1))
            votes = {colour: nearest[names.index(colour)] for colour in CROWDED.colours[thing.kind]}
            asked += 1
            right += max(votes, key=votes.__getitem__) == thing.colour
    assert asked > 80, asked
    assert right / asked > 0.93


def test_a_group_has_as_many_copies_as_its_number(scenes: list[Scene]) -> None:
    """The group fills only its cells of the box."""
    seen = Counter()
    for scene in scenes:
        for index, thing in enumerate(scene.objects):
            if thing.count == 1 or thing.visible < 1 or thing.box[2] - thing.box[0] < 12:
                continue
            left, top, right, bottom = thing.box
            inside = scene.instances[top:bottom, left:right] == index
            side = right - left
            # Quarters of the box: two copies are in the middle rows, three in the lower half and above it.
            halves = [inside[:, : side // 2].sum(), inside[:, (side + 1) // 2 :].sum()]
            assert min(halves) > 0.3 * max(halves)
            outer = inside[: side // 4 - 1].sum() + inside[side - side // 4 + 1 :].sum()
            seen[thing.count] += 1
            assert (outer > 0) == (thing.count == 3)
    assert min(seen[2], seen[3]) > 5


def test_companions_occur_together(scenes: list[Scene]) -> None:
    for first in (0, 2, 4):
        both: Counter[tuple[bool, bool]] = Counter()
        for scene in make_scenes(150, seed=8, world=CROWDED):
            anchor, partner = CROWDED.themes[scene.theme][first : first + 2]
            both[anchor in scene.kinds, partner in scene.kinds] += 1
        beside = both[True, True] / (both[True, True] + both[True, False])
        alone = both[False, True] / (both[False, True] + both[False, False])
        assert beside > alone + 0.3


def test_adversarial_questions_ask_about_missing_companions(scenes: list[Scene]) -> None:
    """Most adversarial absent objects belong to the theme, most random ones do not."""
    of_place = {}
    for split in ("random", "adversarial"):
        rows = [row for row in pope_questions(scenes, split) if row["label"] == "no"]
        by_image = {f"scene_{scene.number:06d}.png": scene for scene in scenes}
        belongs = []
        for row in rows:
            (kind,) = CROWDED.mentions(row["text"])
            scene = by_image[row["image"]]
            assert kind not in scene.kinds
            assert row["text"] == f"Is there {with_article(kind)} in the image?"
            belongs.append(kind in CROWDED.themes[scene.theme])
        of_place[split] = np.mean(belongs)
    assert of_place["adversarial"] > 0.6 > 0.2 > of_place["random"]


def test_questions_about_colours_and_numbers_have_the_drawn_answers(scenes: list[Scene]) -> None:
    assert attribute_questions(make_scene(1, 1, SMALL)) == []
    for scene in scenes:
        things = {thing.kind: thing for thing in scene.objects}
        asked = attribute_questions(scene)
        assert len(asked) == len(things) + sum(kind in CROWDED.countable for kind in things)
        for question, answer in asked:
            (kind,) = CROWDED.mentions(question)
            if question.startswith("How many"):
                assert answer == {1: "One", 2: "Two", 3: "Three"}[things[kind].count]
            else:
                assert answer.lower() == things[kind].colour
                assert (" are the " in question) == (things[kind].count > 1)


def test_depth_questions_are_not_about_groups(scenes: list[Scene]) -> None:
    asked = depth_questions(scenes)
    assert len(asked) > 300
    groups = {(scene.number, thing.kind) for scene in scenes for thing in scene.objects if thing.count > 1}
    assert groups
    assert not groups & {(question.scene, kind) for question in asked for kind in question.choices}


def test_written_annotations_have_colours_and_numbers(scenes: list[Scene], tmp_path: Path) -> None:
    few = scenes[:6]
    write_scenes(few, tmp_path)
    written = json.loads((tmp_path / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in written["categories"]}
    assert tuple(names.values()) == CROWDED.kinds
    things = [(scene.number, thing) for scene in few for thing in scene.objects]
    for entry, (number, thing) in zip(written["annotations"], things, strict=True):
        assert (entry["image_id"], names[entry["category_id"]]) == (number, thing.kind)
        assert (entry["colour"], entry["count"]) == (thing.colour, thing.count)
        assert entry["iscrowd"] == (thing.count > 1)


def test_an_evaluation_set_has_the_requested_world() -> None:
    small = SceneRange(4, world="small")
    assert [half.world for half in small.halves()] == ["small", "small"]
    assert small.as_dict() == {"count": 4, "seed": 2_000_000, "first": 0, "world": "small"}
    assert SceneRange(4) == SceneRange(4, world="crowded")
    made = make_eval_set(small)
    assert {scene.world for scene in made.scenes} == {SMALL}
    assert made.digest() != make_eval_set(SceneRange(4)).digest()


def test_a_model_has_its_own_world_by_default() -> None:
    assert world_name_for("demo-small") == world_name_for("Demo-Small") == "small"
    assert world_name_for("demo") == world_name_for("./demo-small") == world_name_for("org/name") == "crowded"
    assert world_name_for("demo", "small") == "small"
    assert {scene.world for scene in make_scenes(2, seed=1)} == {DEFAULT_WORLD} == {CROWDED}
    assert {name: world_named(name) for name in WORLDS} == WORLDS
    with pytest.raises(UsageError, match="did you mean crowded"):
        world_named("crowdd")
    with pytest.raises(UsageError, match="give small or crowded"):
        SceneRange(4, world="large")
