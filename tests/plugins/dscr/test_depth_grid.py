"""Test resampling to a grid against pixel counts in an enlarged map whose pixels lie within cells."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qkedit.plugins.dscr.depth_grid import Region, area_average


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_resampling_equals_the_mean_over_an_enlarged_map(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    torch.manual_seed(seed)
    depth = torch.rand(height, width)
    enlarged = depth.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    expected = enlarged.reshape(rows, height, columns, width).mean((1, 3))
    torch.testing.assert_close(area_average(depth, rows, columns), expected)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 6),
    cells=st.integers(1, 5),
    start=st.fractions(0, 1, max_denominator=6),
    length=st.fractions(Fraction(1, 6), 1, max_denominator=6),
)
def test_pixels_at_the_edge_of_a_region_count_partly(size: int, cells: int, start: Fraction, length: Fraction) -> None:
    """Compare with each cell's mean in exact fractions; cells without pixels are tested below."""
    values = [3 * i * i % 17 for i in range(size)]
    end = start + length
    expected = []
    for cell in range(cells):
        top, bottom = (size * (start + (end - start) * Fraction(part, cells)) for part in (cell, cell + 1))
        shares = [max(Fraction(0), min(bottom, i + 1) - max(top, i)) for i in range(size)]
        assume(sum(shares))
        expected.append(float(sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares)))
    depth = torch.tensor(values, dtype=torch.float32)[:, None].repeat(1, 3)
    actual = area_average(depth, cells, 1, Region(top=float(start), bottom=float(end)))
    assert actual[:, 0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_padding_has_the_nearest_depth() -> None:
    depth = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    actual = area_average(depth, 4, 2, Region(top=-0.5, bottom=1.5))
    assert actual.tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
