"""Test the questions of an evaluation set, and the scores of answers."""

from __future__ import annotations

import numpy as np
import pytest

from qkedit.demo.questions import pope_questions
from qkedit.demo.scenes import make_scene
from qkedit.errors import UsageError
from qkedit.laboratory.eval_set import HELD_OUT_SEED, SceneRange, make_eval_set
from qkedit.laboratory.measures import MEASURES
from tests.laboratory.small_eval_sets import answers, few_scenes, outcome


def test_every_question_of_every_split_is_asked_once() -> None:
    eval_set = few_scenes()
    wanted = {
        (scene.number, row["text"])
        for split in ("random", "popular", "adversarial")
        for row in pope_questions(eval_set.scenes, split)
        for scene in eval_set.scenes
        if row["image"] == f"scene_{scene.number:06d}.png"
    }
    assert sorted(wanted) == [(eval_set.scenes[place].number, prompt) for place, prompt in eval_set.asked]
    assert len(eval_set.asked) < sum(map(len, eval_set.splits.values()))  # fewer requests than questions


def test_halves_are_disjoint_and_their_questions_use_only_their_own_scenes() -> None:
    first, second = SceneRange(5, seed=1, first=7).halves()
    assert (first, second) == (SceneRange(2, 1, 7), SceneRange(3, 1, 9))
    one = make_eval_set(second)
    assert [scene.number for scene in one.scenes] == [9, 10, 11]
    assert np.array_equal(one.scenes[1].image, make_scene(1, 10).image)
    texts = [question.prompt for question in one.splits["adversarial"]]
    assert texts == [row["text"] for row in pope_questions(one.scenes, "adversarial")]


def test_scenes_of_experiments_are_outside_training_and_validation() -> None:
    assert HELD_OUT_SEED not in (0, 1_000_000)


def test_different_evaluation_sets_have_different_digests() -> None:
    digests = {make_eval_set(SceneRange(2, seed, first)).digest() for seed, first in ((1, 0), (1, 1), (2, 0))}
    assert len(digests) == 3
    assert make_eval_set(SceneRange(2, 1, 1)).digest() in digests


@pytest.mark.parametrize("wrong", [{"count": 1}, {"count": 0}, {"count": 5, "seed": -1}])
def test_invalid_ranges_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        SceneRange(**wrong)


def test_truthful_answers_score_perfectly() -> None:
    eval_set = few_scenes()
    said = answers(eval_set, [scene.caption for scene in eval_set.scenes], "Yes.")
    yes = outcome("yes", eval_set, said)
    assert {name: yes.value(MEASURES[name]) for name in ("chair_s", "chair_i", "recall")} == {
        "chair_s": 0.0,
        "chair_i": 0.0,
        "recall": 1.0,
    }
    for split in ("random", "popular", "adversarial"):
        # Half of the questions are about absent objects.
        assert yes.value(MEASURES[f"accuracy_{split}"]) == 0.5
        assert yes.value(MEASURES[f"hr_{split}"]) == 1.0
        assert yes.value(MEASURES[f"f1_{split}"]) == pytest.approx(2 / 3)


def test_hallucinations_equal_a_count_by_hand() -> None:
    eval_set = few_scenes()
    absent = [next(kind for kind in ("plate", "boat", "tree") if kind not in scene.kinds) for scene in eval_set.scenes]
    # The first caption is right except for a repeated absent object, the second is right, the third is empty.
    captions = [
        f"{eval_set.scenes[0].caption} And a {absent[0]}, a {absent[0]}.",
        eval_set.scenes[1].caption,
        "A place.",
    ]
    found = outcome("some", eval_set, answers(eval_set, captions, "No."))
    kinds = [len(scene.kinds) for scene in eval_set.scenes]
    assert found.value(MEASURES["chair_s"]) == pytest.approx(1 / 3)
    assert found.value(MEASURES["chair_i"]) == pytest.approx(2 / (2 + kinds[0] + kinds[1]))
    assert found.value(MEASURES["recall"]) == pytest.approx((kinds[0] + kinds[1]) / sum(kinds))
    assert found.value(MEASURES["mean_words"]) == pytest.approx(sum(len(text.split()) for text in captions) / 3)
    assert found.value(MEASURES["f1_random"]) == 0.0


def test_a_caption_is_compared_with_its_own_scene() -> None:
    eval_set = few_scenes()
    own = [scene.caption for scene in eval_set.scenes]
    measure = MEASURES["cider"]
    values = {
        name: outcome(name, eval_set, answers(eval_set, captions, "No.")).value(measure)
        for name, captions in (("own", own), ("in capitals", [text.upper() for text in own]), ("silent", [""] * 3))
    }
    assert values == {"own": pytest.approx(10), "in capitals": pytest.approx(10), "silent": 0}
    others = outcome("others", eval_set, answers(eval_set, own[1:] + own[:1], "No.")).value(measure)
    assert others is not None
    assert others < 5
    assert (measure.scale, measure.is_share, measure.better.value) == (100, False, "higher")


def test_answers_are_scored_with_the_questions_of_their_scene() -> None:
    eval_set = few_scenes()
    perfect = answers(eval_set, [""] * 3, "No.")
    truthful = tuple(
        "Yes." if any(f" {kind} " in prompt for kind in eval_set.scenes[scene].kinds) else "No."
        for scene, prompt in eval_set.asked
    )
    right = outcome("right", eval_set, type(perfect)(perfect.captions, truthful))
    for split in ("random", "popular", "adversarial"):
        assert right.value(MEASURES[f"accuracy_{split}"]) == 1.0
        assert right.value(MEASURES[f"hr_{split}"]) == 0.0
    assert right.value(MEASURES["chair_i"]) is None  # no object was mentioned
