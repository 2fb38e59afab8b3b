"""Test depth questions: truth from the drawn pixels, the hardest pair of each scene, and chance for fixed rules."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from qkedit.demo.depth_questions import LEAST_DEPTH, LEAST_SIZE, LEAST_VISIBLE, ORDERS, DepthQuestion, depth_questions
from qkedit.demo.scenes import Scene, make_scenes
from qkedit.demo.worlds import SMALL


@pytest.fixture(scope="module")
def scenes() -> dict[int, Scene]:
    return {scene.number: scene for scene in make_scenes(60, seed=11, world=SMALL)}


@pytest.fixture(scope="module")
def questions(scenes: dict[int, Scene]) -> list[DepthQuestion]:
    return depth_questions(list(scenes.values()))


def test_the_truth_agrees_with_the_pixels(scenes: dict[int, Scene], questions: list[DepthQuestion]) -> None:
    for question in questions:
        scene = scenes[question.scene]
        places = [scene.kinds.index(kind) for kind in question.choices]
        depths = [float(np.median(scene.depth[scene.instances == place])) for place in places]
        sides = [scene.objects[place].box[3] - scene.objects[place].box[1] for place in places]
        amounts = depths if question.order in ("nearest", "farthest") else sides
        wanted = min(amounts) if question.order in ("nearest", "smallest") else max(amounts)
        assert question.truth == question.choices[amounts.index(wanted)]
        assert amounts[0] != amounts[1]
        assert question.text == f"Which is {question.order}, the {question.choices[0]} or the {question.choices[1]}?"


def test_each_question_has_the_hardest_pair(scenes: dict[int, Scene], questions: list[DepthQuestion]) -> None:
    asked = {(question.scene, question.order): question for question in questions}
    for number, scene in scenes.items():
        seen = [thing for thing in scene.objects if thing.visible >= LEAST_VISIBLE]
        for order in ORDERS:
            hardest: list[tuple[bool, float]] = []
            for one, other in combinations(seen, 2):
                sizes = sorted([one.box[2] - one.box[0], other.box[2] - other.box[0]])
                distance = abs(one.depth - other.depth)
                far = order in ("nearest", "farthest") and distance < LEAST_DEPTH
                alike = order in ("smallest", "largest") and sizes[1] < LEAST_SIZE * sizes[0]
                if not far and not alike:
                    pixels = [
                        {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}
                        for box in (one.box, other.box)
                    ]
                    hardest.append((not pixels[0] & pixels[1], distance))
            question = asked.get((number, order))
            assert (question is None) == (not hardest)
            if question is not None:
                assert (not question.overlap, question.distance) == min(hardest)


def test_a_fixed_rule_has_chance_accuracy(questions: list[DepthQuestion]) -> None:
    for order in ORDERS:
        own = [question for question in questions if question.order == order]
        first = sum(question.choices[0] == question.truth for question in own)
        assert first == (len(own) + 1) // 2 > 10
    assert any(question.overlap for question in questions)
    assert len({question.id for question in questions}) == len(questions)
