"""Test the verdict: it names an effect only if the interval excludes 0, together with its cost."""

from __future__ import annotations

import pytest

from qkedit.evaluation.statistics.intervals import Difference, Interval
from qkedit.laboratory.measures import Figure, Row
from qkedit.report.strength import strength
from qkedit.report.verdict import Verdict, verdict

Bounds = tuple[float, float, float] | None
LESS, SAME, MORE = (-0.05, -0.08, -0.02), (-0.01, -0.04, 0.02), (0.05, 0.02, 0.08)


def difference(metric: str, bounds: Bounds) -> Difference:
    value, low, high = (None, None, None) if bounds is None else bounds
    return Difference(metric, 0.5, 0.5, value, low, high, None, "bootstrap", 10, 10, 0.95)


def verdict_for(hallucination: Bounds, recall: Bounds, to_controls: Bounds = LESS) -> Verdict | None:
    interval = Interval("chair_s", 0.5, 0.4, 0.6, "bootstrap", 10, 10, 0.95)
    figures = {
        name: Figure(interval, difference=difference(name, bounds))
        for name, bounds in (("chair_s", hallucination), ("recall", recall))
    }
    return verdict(Row("edited", (), figures, 0.9, 0.1), {"chair_s": difference("chair_s", to_controls)})


@pytest.mark.parametrize(
    ("hallucination", "recall", "to_controls", "words", "next_step"),
    [
        (LESS, SAME, LESS, ("hallucinates less", ";clearly less than with", "no clear loss of recall"), "steer"),
        (LESS, MORE, LESS, ("hallucinates less", ";clearly less", "more recall"), "steer"),
        (LESS, SAME, SAME, ("hallucinates less", ";not clearly less than with random modes",), "sweep"),
        (LESS, LESS, LESS, ("hallucinates less", "less recall, and saying less is a way to"), "sweep"),
        (SAME, SAME, LESS, ("no clear effect on hallucination",), "more scenes"),
        (SAME, LESS, LESS, ("no clear effect on hallucination", ";less recall (recall -5.0 points"), "sweep"),
        (MORE, SAME, LESS, ("the edit hallucinates more",), "sweep"),
        (MORE, LESS, LESS, ("the edit hallucinates more", ";less recall ("), "sweep"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_intervals(
    hallucination: Bounds, recall: Bounds, to_controls: Bounds, words: tuple[str, ...], next_step: str
) -> None:
    found = verdict_for(hallucination, recall, to_controls)
    assert found is not None
    assert all(said in f";{found.text}".replace("; ", ";") for said in words)
    assert next_step in found.next_step
    # Effects that no interval shows are not mentioned.
    assert ("random modes" in found.text) == (hallucination is LESS)


def test_bounds_at_zero_are_no_effect_and_figures_are_in_points() -> None:
    found = verdict_for((-0.05, -0.1, 0.0), (-0.0001, -0.04, 0.04))
    assert found is not None
    assert found.text == "no clear effect on hallucination: CHAIR_s -5.0 points [-10.0, +0.0] against the base"


def test_without_an_interval_of_hallucination_the_verdict_is_none() -> None:
    assert verdict_for(None, SAME) is None
    assert verdict_for(LESS, None) is not None


@pytest.mark.parametrize(
    ("removed", "words"),
    [(0.0, "mild"), (0.0999, "mild"), (0.1, "marked"), (0.4999, "marked"), (0.5, "strong"), (1.0, "strong")],
)
def test_a_share_of_energy_is_put_into_words(removed: float, words: str) -> None:
    assert strength(removed) == f"a {words} edit"
