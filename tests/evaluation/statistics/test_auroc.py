"""Test the AUROC against a count of ordered pairs, and its interval against a group-by-group bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.evaluation.statistics.auroc import auroc

_items = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.sampled_from("abcd")), max_size=12)


def slow_area(items: list[tuple[int, bool, str]]) -> float | None:
    positives, negatives = ([score for score, kind, _ in items if kind == wanted] for wanted in (True, False))
    pairs = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    return sum(pairs) / len(pairs) if pairs else None


@given(_items)
def test_the_auroc_is_the_share_of_ordered_pairs(items: list[tuple[int, bool, str]]) -> None:
    found = auroc(*zip(*items, strict=True), resamples=50) if items else auroc([], [], [])  # type: ignore[arg-type]
    expected = slow_area(items)
    assert (found.value is None) == (expected is None)
    if expected is not None:
        assert found.value == pytest.approx(expected)
    kinds = [kind for _, kind, _ in items]
    assert (found.positives, found.negatives) == (kinds.count(True), kinds.count(False))
    assert found.groups == len({group for *_, group in items})
    assert (found.low is None) == (expected is None or found.groups < 2)


def test_the_interval_equals_that_of_resampled_groups() -> None:
    generator = np.random.default_rng(3)
    items = [
        (int(generator.integers(0, 9)) + 2 * kind, bool(kind), f"image {number}")
        for number in range(15)
        for kind in generator.integers(0, 2, 3)
    ]
    by_group = [[item for item in items if item[2] == f"image {number}"] for number in range(15)]
    areas = [
        slow_area([item for place in generator.integers(0, 15, 15) for item in by_group[place]]) for _ in range(600)
    ]
    low, high = np.quantile([area for area in areas if area is not None], (0.025, 0.975))
    found = auroc(*zip(*items, strict=True))  # type: ignore[arg-type]
    assert (found.low, found.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))
    assert found == auroc(*zip(*items, strict=True)), "seeded"  # type: ignore[arg-type]
