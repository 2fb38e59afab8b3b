"""Test the rows of a comparison: pooled seeds, differences from the base, and conclusions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qkedit.demo.scenes import with_article
from qkedit.demo.worlds import SMALL
from qkedit.evaluation.statistics.intervals import paired
from qkedit.laboratory.eval_set import EvalSet, SceneRange, make_eval_set
from qkedit.laboratory.measures import MEASURES, Outcome, against, compare
from qkedit.report.figures import improves
from tests.laboratory.small_eval_sets import answers, outcome

SCENES = make_eval_set(SceneRange(60, world=SMALL.name))


def inventing(name: str, which: set[int], group: str = "") -> Outcome:
    """Return an arm that adds absent objects to some captions, and answers yes to every question."""

    def caption(eval_set: EvalSet, place: int) -> str:
        scene = eval_set.scenes[place]
        invented = next(kind for kind in ("plate", "boat", "tree", "car") if kind not in scene.kinds)
        return scene.caption + (f" And {with_article(invented)}." if place in which else "")

    said = answers(SCENES, [caption(SCENES, place) for place in range(60)], "Yes.")
    return outcome(name, SCENES, said, group)


BASE = inventing("base", set(range(30)))


def test_seeds_of_a_control_are_pooled_with_their_range() -> None:
    seeds = [inventing(f"control {count}", set(range(count)), "control") for count in (27, 30, 36)]
    rows = compare([BASE, *seeds], BASE)
    assert [row.name for row in rows] == ["base", "control"]
    figure = rows[1].figures["chair_s"]
    assert figure.interval.value == pytest.approx((27 + 30 + 36) / 180)
    assert (figure.least, figure.most) == (pytest.approx(27 / 60), pytest.approx(36 / 60))
    assert figure.interval.groups == 60  # scenes, not answers of all seeds
    assert figure.difference is not None
    assert figure.difference.value == pytest.approx(((27 + 30 + 36) / 3 - 30) / 60)


def test_an_equal_arm_has_zero_differences_and_the_base_has_none() -> None:
    twin = inventing("twin", set(range(30)))
    base, same = compare([BASE, twin], BASE)
    assert all(figure.difference is None and figure.p_holm is None for figure in base.figures.values())
    for figure in same.figures.values():
        assert figure.difference is not None
        assert (figure.difference.value, figure.difference.low, figure.difference.high) == (0, 0, 0)
        assert figure.p_holm == 1.0


def test_a_difference_equals_that_of_the_paired_statistics() -> None:
    better = inventing("better", set(range(10)))
    row = compare([BASE, better], BASE)[1]
    found = row.figures["chair_s"].difference
    expected = paired(BASE.scores["captions"].items, better.scores["captions"].items, "chair_s", resamples=20_000)
    assert found is not None
    assert (found.value, expected.value) == (pytest.approx(-20 / 60), pytest.approx(-20 / 60))
    assert found.low == pytest.approx(expected.low, abs=0.02)
    assert found.high == pytest.approx(expected.high, abs=0.02)
    # One comparison is not corrected; the smallest of three p-values is multiplied by 3.
    assert row.figures["chair_s"].p_holm == found.p
    worse = [inventing(name, set(range(31))) for name in ("a", "b")]
    of_three = compare([BASE, better, *worse], BASE)[1].figures["chair_s"]
    assert of_three.p_holm == pytest.approx(3 * of_three.difference.p)  # type: ignore[union-attr, operator]


def test_an_arm_is_compared_with_all_seeds_of_its_control() -> None:
    edit = inventing("edit", set(range(20)))
    controls = [inventing(f"control {count}", set(range(count)), "control") for count in (26, 34)]
    difference = against(edit, controls, MEASURES["chair_s"])
    assert (difference.a, difference.b) == (pytest.approx(0.5), pytest.approx(20 / 60))
    assert difference.value == pytest.approx(-10 / 60)
    assert difference.groups == 60


@pytest.mark.parametrize(
    ("name", "low", "high", "expected"),
    [
        ("chair_s", -0.2, -0.1, True),
        ("chair_s", 0.1, 0.2, False),
        ("chair_s", -0.1, 0.1, None),
        ("chair_s", -0.1, 0.0, None),
        ("f1_random", 0.1, 0.2, True),
        ("recall", -0.2, -0.1, False),
        ("mean_words", 0.1, 0.2, None),
    ],
)
def test_the_better_direction_depends_on_the_measure(
    name: str, low: float, high: float, expected: bool | None
) -> None:
    difference = against(BASE, [inventing("other", {1})], MEASURES["chair_s"])
    assert improves(MEASURES[name], replace(difference, low=low, high=high)) is expected
