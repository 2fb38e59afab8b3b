"""Test spectra at offsets, symmetric shares, biases and subspaces against dense products."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.spectral.analysis import (
    bias_share,
    dominant_subspaces,
    kept_share,
    principal_angles,
    spectra,
    symmetric_share,
)
from qkedit.spectral.product import QKProduct
from qkedit.spectral.rotary import RotaryPositions
from qkedit.spectral.suppression import Channel, Suppression
from tests.spectral import oracle
from tests.spectral.oracle import Matrix
from tests.spectral.weights import KINDS, as_product, layer, layers

CHANNELS: tuple[Channel, ...] = ("full", "symmetric", "antisymmetric")
POSITIONS = (
    RotaryPositions(6, (1.0, 0.3, 0.07)),
    RotaryPositions(6, (1.0, 0.3, 0.07), adjacent=True),
    RotaryPositions(6, (1.0, 0.1)),
    RotaryPositions(6, (1.0, 0.1), adjacent=True),
    RotaryPositions(6, (1.0, 0.3, 0.07), axes=(0, 1, 2)),
    RotaryPositions(6, (1.0, 0.3, 0.07), adjacent=True, axes=(2, 0, 1)),
)
OFFSETS = ((0, 0, 0), (1, 1, 1), (7, 7, 7), (-3, 5, 2), (0, 4, 0))


def turned(vector: Matrix, positions: RotaryPositions, place: tuple[int, int, int]) -> Matrix:
    """Rotate one head's vector pair by pair, as complex numbers."""
    result = vector.copy()
    pairs = len(positions.frequencies)
    for pair, frequency in enumerate(positions.frequencies):
        first, second = (2 * pair, 2 * pair + 1) if positions.adjacent else (pair, pair + pairs)
        axis = positions.axes[pair] if positions.axes else 0
        number = complex(vector[first], vector[second]) * np.exp(1j * frequency * place[axis])
        result[first], result[second] = number.real, number.imag
    return result


def product_at_offset(product: QKProduct, rotation: torch.Tensor) -> QKProduct:
    """Return the product of the same queries with the keys at the offset."""
    return QKProduct(product.query, rotation.mT @ product.key, product.key_head)


def dense_at_offset(query: Matrix, key: Matrix, positions: RotaryPositions, offset: tuple[int, int, int]) -> Matrix:
    """Return `M_n` column by column: the logit of unit inputs, the query `offset` after the key."""
    key_place = (3, 11, 6)
    query_place = tuple(key + step for key, step in zip(key_place, offset, strict=True))
    turned_query = np.stack([turned(column, positions, query_place) for column in query.T], axis=1)
    turned_key = np.stack([turned(column, positions, key_place) for column in key.T], axis=1)
    return turned_query.T @ turned_key


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("channel", CHANNELS)
def test_spectra_at_offsets_equal_those_of_dense_products(channel: Channel, positions: RotaryPositions) -> None:
    product, query, key = as_product(
        *layer(60, heads=6, key_heads=3, query_kinds=KINDS, key_kinds=("random", "spiked"))
    )
    for offset in OFFSETS:
        at_offset = product_at_offset(product, positions.rotation(offset))
        found = spectra(at_offset, Suppression(k=2, channel=channel))
        shares = symmetric_share(at_offset, Suppression(channel=channel))
        for head in range(6):
            dense = dense_at_offset(query[head], key[product.key_head[head]], positions, offset)
            modes = oracle.modes(dense, channel)
            count = min(len(modes.values), found.values.shape[1])
            scale = modes.values[0] or 1.0
            np.testing.assert_allclose(found.values[head, :count], modes.values[:count], rtol=0, atol=1e-10 * scale)
            if not np.any(dense):
                assert shares[head].isnan()
                continue
            share = np.linalg.norm(oracle.channel_part(dense, "symmetric")) ** 2 / np.linalg.norm(dense) ** 2
            np.testing.assert_allclose(shares[head].item(), share, atol=1e-10)


@pytest.mark.parametrize("channel", ["symmetric", "antisymmetric"])
def test_the_realised_change_at_an_offset_equals_the_dense_one(channel: Channel) -> None:
    positions, offset = POSITIONS[0], (5, 5, 5)
    product, query, key = as_product(*layer(61, query_kinds=("random", "spiked")))
    found = spectra(product_at_offset(product, positions.rotation(offset)), Suppression(k=2, channel=channel))
    assert found.unrealized_share is not None
    assert found.leak is not None
    for head in range(4):
        keys = key[product.key_head[head]]
        dense = dense_at_offset(query[head], keys, positions, offset)
        increment = oracle.modes(dense, channel).cut(2)
        realised = increment @ np.linalg.pinv(keys) @ keys
        other = oracle.channel_part(realised, "antisymmetric" if channel == "symmetric" else "symmetric")
        size = np.linalg.norm(increment)
        np.testing.assert_allclose(
            found.unrealized_share[head].item(), np.linalg.norm(realised - increment) / size, atol=1e-9
        )
        np.testing.assert_allclose(found.leak[head].item(), np.linalg.norm(other) / size, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(weights=layers(), channel=st.sampled_from(CHANNELS))
def test_dominant_subspaces_equal_those_of_dense_products(weights: tuple[Matrix, Matrix], channel: Channel) -> None:
    product, query, key = as_product(*weights)
    suppression = Suppression(k=2, channel=channel)
    found = dominant_subspaces(product, suppression)
    counts = spectra(product, suppression).counts.tolist()
    for head in range(len(query)):
        modes = oracle.modes(query[head].T @ key[product.key_head[head]], channel)
        columns = counts[head] * modes.width
        if columns == 0:
            assert found.query_side[head].shape == (query.shape[2], 0)
            continue
        rest = modes.values[counts[head]] if counts[head] < len(modes.values) else 0.0
        # The dense decomposition has a subspace only to eps · σ₁ / (distance at the cut).
        distance = (modes.values[counts[head] - 1] - rest) / modes.values[0]
        for side, expected in ((found.query_side, modes.left), (found.key_side, modes.right)):
            assert side[head].shape == (query.shape[2], columns)
            np.testing.assert_allclose(side[head].T @ side[head], np.eye(columns), atol=1e-10)
            spanned = expected[:, :columns] @ expected[:, :columns].T
            share = 1e-10 + 1e-14 / max(distance, 1e-14)
            np.testing.assert_allclose(side[head] @ side[head].T, spanned, atol=share)


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_surviving_share_at_an_offset_equals_the_dense_one(channel: Channel) -> None:
    positions, offset, suppression = POSITIONS[0], (4, 4, 4), Suppression(k=2, channel=channel)
    product, query, key = as_product(*layer(62))
    before = dominant_subspaces(product, suppression)
    after = dominant_subspaces(product_at_offset(product, positions.rotation(offset)), suppression)
    for head in range(4):
        keys = key[product.key_head[head]]
        at_zero = oracle.modes(query[head].T @ keys, channel)
        at_offset = oracle.modes(dense_at_offset(query[head], keys, positions, offset), channel)
        columns = 2 * at_zero.width
        for side in ("left", "right"):
            spans = [getattr(modes, side)[:, :columns] for modes in (at_zero, at_offset)]
            expected = np.linalg.norm(spans[0].T @ spans[1]) ** 2 / columns
            name = "query_side" if side == "left" else "key_side"
            found = kept_share(getattr(before, name)[head], getattr(after, name)[head])
            np.testing.assert_allclose(found, expected, atol=1e-9)


def test_an_empty_subspace_has_no_surviving_share() -> None:
    assert kept_share(torch.zeros(6, 0), torch.zeros(6, 2)) is None


@settings(max_examples=60, deadline=None)
@given(
    angles=st.lists(st.floats(1e-12, math.pi / 2), min_size=1, max_size=3),
    extra=st.integers(0, 2),
    seed=st.integers(0, 999),
)
def test_principal_angles_equal_those_of_the_construction(angles: list[float], extra: int, seed: int) -> None:
    count, size = len(angles), 10
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]
    first = basis[:, :count]
    tilted = first * np.cos(angles) + basis[:, count : 2 * count] * np.sin(angles)
    second = np.concatenate([tilted, basis[:, 2 * count : 2 * count + extra]], axis=1)
    mixed = second @ np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((second.shape[1],) * 2))[0]
    for pair in ((first, mixed), (mixed, first)):
        found = principal_angles(*(torch.from_numpy(span) for span in pair)).numpy()
        np.testing.assert_allclose(found, sorted(angles), rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("with_query", [True, False])
@pytest.mark.parametrize("with_key", [True, False])
def test_the_share_of_biases_equals_the_share_of_the_variance(with_query: bool, with_key: bool) -> None:
    product, query, key = as_product(*layer(63, query_kinds=("random", "random", "zero", "spiked")))
    random = np.random.default_rng(0)
    query_bias, key_bias = random.standard_normal((4, 6)), random.standard_normal((2, 6))
    seen = np.stack([key[product.key_head[head]].T @ query_bias[head] for head in range(4)])
    found = bias_share(
        product,
        torch.from_numpy(seen) if with_query else None,
        torch.from_numpy(key_bias) if with_key else None,
    )
    for head in range(4):
        keys = key[product.key_head[head]]
        energy = np.sum((query[head].T @ keys) ** 2)
        brought = 0.0
        if with_key:
            brought += np.sum((query[head].T @ key_bias[product.key_head[head]]) ** 2)
        if with_query:
            brought += np.sum((keys.T @ query_bias[head]) ** 2)
        np.testing.assert_allclose(found[head].item(), brought / (brought + energy) if brought else 0.0, atol=1e-12)


@pytest.mark.parametrize("positions", POSITIONS)
def test_rotations_rotate_vectors_and_their_inverse_restores_them(positions: RotaryPositions) -> None:
    vector = np.random.default_rng(1).standard_normal(6)
    for offset in OFFSETS:
        matrix = positions.rotation(offset).numpy()
        np.testing.assert_allclose(matrix @ vector, turned(vector, positions, offset), atol=1e-13)
        back = positions.rotation((-offset[0], -offset[1], -offset[2])).numpy()
        np.testing.assert_allclose(back @ matrix, np.eye(6), atol=1e-13)
