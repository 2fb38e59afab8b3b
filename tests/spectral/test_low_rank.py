"""Test factors of changes against the dense changes, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.spectral.changes.low_rank import LowRankChange, head_changes, nearest, stacked
from qkedit.spectral.edit import suppress
from qkedit.spectral.product import QKProduct
from qkedit.spectral.suppression import Channel, Control, Suppression
from tests.spectral.weights import SOUND_KINDS, as_product, layer, layers

EDITS: tuple[tuple[Channel, Control], ...] = (
    ("full", "none"),
    ("full", "norm"),
    ("symmetric", "none"),
    ("antisymmetric", "none"),
)


def changes_of(product: QKProduct, suppression: Suppression) -> tuple[list[LowRankChange], np.ndarray, list[int]]:
    """Return the factors of each head, the stored dense changes, and the number of suppressed modes."""
    edit = suppress(product, suppression)
    dense = (edit.update.apply(product, torch.float64)[0] - product.query).numpy()
    return head_changes(edit.update.left, edit.update.directions(product)), dense, edit.counts.tolist()


@settings(max_examples=30, deadline=None)
@given(weights=layers(), k=st.integers(1, 5), kind=st.sampled_from(EDITS), energy=st.sampled_from([None, 0.5]))
def test_the_factors_equal_the_edit(
    weights: tuple[np.ndarray, np.ndarray], k: int, kind: tuple[Channel, Control], energy: float | None
) -> None:
    product, query, _ = as_product(*weights)
    channel, control = kind
    changes, dense, counts = changes_of(product, Suppression(k, energy, 0.25, channel, control))
    planes = 2 if channel == "antisymmetric" else 1
    for head, change in enumerate(changes):
        assert change.rank == min(planes * counts[head], query.shape[1])
        # The subtracted weights were rounded together with the change.
        scale = max(np.linalg.norm(query[head]), np.linalg.norm(dense[head]))
        np.testing.assert_allclose(change.dense().numpy(), dense[head], rtol=0, atol=1e-9 * scale + 1e-300)
        sides = [torch.linalg.matrix_norm(side).item() for side in (change.left, change.right)]
        np.testing.assert_allclose(*sides, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-22, 1e18])
def test_factors_of_heads_of_extreme_size_are_in_range(scale: float) -> None:
    query, key = layer(3)
    product, *_ = as_product(query * scale, key * scale)
    changes, dense, _ = changes_of(product, Suppression(2))
    for change, expected in zip(changes, dense, strict=True):
        np.testing.assert_allclose(change.dense().numpy(), expected, rtol=0, atol=1e-9 * np.linalg.norm(expected))
        for side in (change.left, change.right):
            assert side.abs().max() < 10 * scale**0.5


@settings(max_examples=15, deadline=None)
@given(weights=layers(SOUND_KINDS), k=st.integers(1, 3), gap=st.integers(0, 3), order=st.permutations(range(9)))
def test_factors_of_heads_have_their_own_rows(
    weights: tuple[np.ndarray, np.ndarray], k: int, gap: int, order: list[int]
) -> None:
    product, query, _ = as_product(*weights)
    changes, dense, _ = changes_of(product, Suppression(k))
    heads, size, hidden = query.shape
    places = [place * (size + gap) for place in order if place < heads]
    rows = heads * (size + gap) + 2
    change = stacked(list(zip(places, changes, strict=True)), rows)
    expected = np.zeros((rows, hidden))
    for place, head in zip(places, dense, strict=True):
        expected[place : place + size] = head
    np.testing.assert_allclose(change.dense().numpy(), expected, rtol=0, atol=1e-9 * np.linalg.norm(query))
    assert change.rank == sum(part.rank for part in changes)
    # Each column of B is nonzero only in the rows of one head.
    for column in change.left.mT:
        touched = column.nonzero().flatten()
        assert any(set(touched.tolist()) <= set(range(place, place + size)) for place in places)


@settings(max_examples=15, deadline=None)
@given(weights=layers(SOUND_KINDS), rank=st.integers(1, 20))
def test_truncation_is_the_best_approximation(weights: tuple[np.ndarray, np.ndarray], rank: int) -> None:
    product, query, _ = as_product(*weights)
    changes, *_ = changes_of(product, Suppression(3))
    size = query.shape[1]
    change = stacked([(head * size, part) for head, part in enumerate(changes)], len(query) * size)
    cut, error = change.truncated(rank)
    dense = change.dense().numpy()
    values = np.linalg.svd(dense, compute_uv=False)
    assert cut.rank == (change.rank if rank >= change.rank else min(rank, query.shape[2]))
    realised = np.linalg.norm(cut.dense().numpy() - dense) / np.linalg.norm(dense)
    np.testing.assert_allclose(realised, error, atol=1e-9)
    np.testing.assert_allclose(error, np.linalg.norm(values[cut.rank :]) / np.linalg.norm(values), atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(weights=layers(SOUND_KINDS), k=st.integers(1, 4))
def test_factors_are_recovered_from_the_dense_change(weights: tuple[np.ndarray, np.ndarray], k: int) -> None:
    product, query, _ = as_product(*weights)
    changes, dense, counts = changes_of(product, Suppression(k))
    for head, change in enumerate(changes):
        found = nearest(torch.from_numpy(dense[head]), counts[head])
        assert found.rank == change.rank == counts[head]
        scale = 1e-9 * np.linalg.norm(query[head])
        np.testing.assert_allclose(found.dense().numpy(), change.dense().numpy(), rtol=0, atol=scale)


def test_a_head_without_modes_has_factors_of_rank_zero() -> None:
    (change,) = head_changes(torch.zeros(1, 4, 2), torch.ones(1, 2, 8))
    assert change.rank == 0
    assert change.truncated(1)[1] == 0
    assert torch.equal(stacked([(0, change)], 6).dense(), torch.zeros(6, 8).double())
