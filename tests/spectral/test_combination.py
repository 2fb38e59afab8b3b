"""Test stacked and scaled edits against exact fractions and dense projectors."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qkedit.spectral.changes.combination import combined, interaction, rounded, scaled

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest(exact: Fraction, dtype: torch.dtype) -> float:
    """Return the 16-bit number nearest to `exact`, ties to even, found among neighbours by fractions."""
    close = torch.tensor(float(exact)).to(dtype).view(torch.int16)
    candidates = [torch.tensor([int(close) + step], dtype=torch.int16) for step in (-1, 0, 1)]
    ordered = sorted(candidates, key=lambda bits: (abs(Fraction(float(bits.view(dtype))) - exact), int(bits) & 1))
    return float(ordered[0].view(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@given(numbers=st.lists(st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3), min_size=1, max_size=8), near=st.integers(0, 3))
def test_sums_are_rounded_once_to_sixteen_bits(dtype: torch.dtype, numbers: list[float], near: int) -> None:
    """Use numbers near ties, where two roundings differ from one."""
    kind = torch.finfo(dtype)
    stored = torch.tensor(numbers, dtype=torch.float64).to(dtype).double()
    ties = stored * (1 + (-1) ** near * kind.eps / 2) + (near - 1) * 2.0**-40 * stored
    for wide in (torch.tensor(numbers, dtype=torch.float64), ties):
        expected = [nearest(Fraction(number), dtype) for number in wide.tolist()]
        assert rounded(wide, dtype).double().tolist() == expected


def test_a_number_next_to_a_tie_is_rounded_once() -> None:
    near_a_tie = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert (
        float(near_a_tie.to(torch.bfloat16)) == 1.0
    )  # two roundings: to float32, where the excess is lost, then to even
    assert float(rounded(near_a_tie, torch.bfloat16)) == 1 + 2.0**-7


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**16), order=st.permutations(range(3)))
def test_the_order_of_a_sum_does_not_matter(dtype: torch.dtype, seed: int, order: list[int]) -> None:
    base = random(4, 5, seed=seed).to(dtype)
    edits = [(base.double() + 0.1 * random(4, 5, seed=seed + 1 + number)).to(dtype) for number in range(3)]
    one, other = combined(base, edits), combined(base, [edits[number] for number in order])
    assert torch.equal(one, other)
    terms = torch.stack([*edits, -base, -base]).double().flatten(1)
    exact = torch.tensor([math.fsum(column) for column in terms.T.tolist()], dtype=torch.float64).view(4, 5)
    # Sums of float64 numbers are rounded several times, sums of shorter ones once.
    largest = 4 * terms.abs().max() if dtype == torch.float64 else 0.3
    eps = torch.finfo(dtype).eps
    assert torch.allclose(one.double(), exact, rtol=eps, atol=float(largest) * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_changed_by_one_edit_keep_its_bits(dtype: torch.dtype) -> None:
    """Cover numbers that a sum would lose: of another size, or a zero of another sign."""
    base = random(6, 4, seed=0).to(dtype)
    base[0, 0], base[5, 0] = 60000, 0.0
    one, other = base.clone(), base.clone()
    one[:3] = random(3, 4, seed=1).to(dtype) * 1e-3
    other[4:] = -random(2, 4, seed=2).to(dtype)
    other[5, 0] = -0.0
    expected = torch.cat([one[:3], base[3:4], other[4:]])
    for edits in ([one, other], [other, one], [one, base, other]):
        found = combined(base, edits)
        assert found.view(torch.uint8).equal(expected.view(torch.uint8))


def test_large_tensors_are_combined_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    base, one, other = (random(7, 3, seed=seed).float() for seed in range(3))
    whole = combined(base, [one, other]), scaled(base, one, 0.5)
    monkeypatch.setattr("qkedit.spectral.changes.combination._NUMBERS_AT_ONCE", 6)
    assert torch.equal(combined(base, [one, other]), whole[0])
    assert torch.equal(scaled(base, one, 0.5), whole[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_strength_scales_the_change(dtype: torch.dtype) -> None:
    base = random(3, 4, seed=3).to(dtype)
    edited = base.clone()
    edited[1:] = random(2, 4, seed=4).to(dtype)
    edited[1, 0] = base[1, 0] * 1e-4  # its change loses digits of the edit
    assert torch.equal(scaled(base, edited, 1), edited)
    assert torch.equal(scaled(base, edited, 0), base)
    for strength in (0.3, 1.7, 2):
        exact = base.double() + strength * (edited.double() - base.double())
        assert torch.equal(scaled(base, edited, strength), rounded(exact, dtype))
        assert torch.equal(scaled(base, edited, strength)[0], base[0])


def projectors(seed: int, shares: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries of two heads `[2, 4, 9]`, and two maps `A = (1−ρ) U Uᵀ` with U in their row space."""
    query = random(2, 4, 9, seed=seed)
    maps = []
    for number, share in enumerate(shares):
        basis = torch.linalg.qr((random(2, 2, 4, seed=seed + number + 1) @ query).mT)[0]
        maps.append(share * basis @ basis.mT)
    return query, maps[0], maps[1]


@given(seed=st.integers(0, 2**16), shares=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)))
def test_the_interaction_is_sum_minus_composition(seed: int, shares: tuple[float, float]) -> None:
    """Multiply dense D × D maps, which the package never forms."""
    query, first, second = projectors(seed, shares)
    eye = torch.eye(9, dtype=torch.float64)
    one, other = query @ (eye - first), query @ (eye - second)
    total = one + other - query
    composed = query @ (eye - first) @ (eye - second), query @ (eye - second) @ (eye - first)
    size = torch.linalg.matrix_norm(total - query)
    found = interaction(query, one, other)
    overlap = torch.maximum(*(torch.linalg.matrix_norm(each - total) for each in composed)) / size
    assert torch.allclose(found.overlap, overlap, rtol=1e-6, atol=1e-9)
    assert torch.allclose(
        found.order, torch.linalg.matrix_norm(composed[0] - composed[1]) / size, rtol=1e-6, atol=1e-9
    )


def test_edits_of_orthogonal_modes_compose_to_their_sum() -> None:
    query = random(1, 4, 9, seed=5)
    _, _, right = torch.linalg.svd(query[0], full_matrices=False)
    one, other = (query - query @ part.mT @ part for part in (right[:2], right[2:3]))
    found = interaction(query, one, other)
    assert float(found.overlap) < 1e-12
    assert float(found.order) < 1e-12


def test_an_edit_stacked_on_itself_overlaps_completely() -> None:
    query, first, _ = projectors(6, (1.0, 1.0))
    once = query - query @ first
    found = interaction(query, once, once)
    assert found.overlap.numpy() == pytest.approx(np.full(2, 0.5))  # ‖W A‖ / ‖2 W A‖
    assert found.order.numpy() == pytest.approx(np.zeros(2), abs=1e-12)


def test_empty_and_cancelling_edits_have_defined_interactions() -> None:
    query, first, _ = projectors(7, (1.0, 1.0))
    nothing = interaction(query, query, query)
    assert nothing.overlap.tolist() == nothing.order.tolist() == [0, 0]
    cancelled = interaction(query, query + query @ first, query - query @ first)
    assert (cancelled.overlap > 1e6).all()
