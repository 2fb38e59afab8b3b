"""Test edited query weights against dense projectors, least squares and channel definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.spectral.edit import suppress
from qkedit.spectral.product import QKProduct
from qkedit.spectral.query_edit import QueryEdit
from qkedit.spectral.suppression import Channel, Suppression
from tests.pretended_devices import PretendedDevices
from tests.spectral import oracle
from tests.spectral.weights import KINDS, SOUND_KINDS, as_product, layer, layers, on_mps

# Below this ratio of the values on both sides of the cut, the modes are arbitrary.
SMALLEST_GAP = 1.001
CHANNELS: tuple[Channel, ...] = ("symmetric", "antisymmetric")


def is_well_cut(edit: QueryEdit, head: int) -> bool:
    gap = float(edit.gap[head])
    return np.isnan(gap) or gap >= SMALLEST_GAP


def assert_head_close(found: np.ndarray, expected: np.ndarray, before: np.ndarray, share: float) -> None:
    """Compare relative to the head's norm before or after, whichever is larger."""
    scale = max(np.linalg.norm(before, 2), np.linalg.norm(expected, 2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * scale + 1e-300)


@settings(max_examples=80, deadline=None)
@given(weights=layers(), k=st.integers(1, 5), retain=st.sampled_from([0.0, 0.3, 0.95]))
def test_a_full_edit_equals_the_projector_form(weights: tuple[np.ndarray, np.ndarray], k: int, retain: float) -> None:
    product, query, key = as_product(*weights)
    edit = suppress(product, Suppression(k=k, retain=retain))
    edited = edit.update.apply(product, torch.float64)[0].numpy()
    for head in range(len(query)):
        keys = key[product.key_head[head]]
        count = int(edit.counts[head])
        assert count == min(k, int(product.modes.ranks[head]))
        if not is_well_cut(edit, head):
            continue
        values = oracle.modes(query[head].T @ keys).values
        # The dense decomposition has a subspace only to eps · σ₁ / (distance at the cut).
        distance = (values[count - 1] - values[count]) / values[0] if count else 1.0
        expected = oracle.projected_query(query[head], keys, count, retain)
        assert_head_close(edited[head], expected, query[head], 1e-10 + 1e-14 / distance)


@settings(max_examples=40, deadline=None)
@given(weights=layers(("random", "spiked", "condition 1e3")), k=st.integers(1, 4))
def test_a_full_edit_equals_the_least_squares_form_for_regular_keys(
    weights: tuple[np.ndarray, np.ndarray], k: int
) -> None:
    product, query, key = as_product(*weights)
    edit = suppress(product, Suppression(k=k, retain=0.25))
    edited = edit.update.apply(product, torch.float64)[0].numpy()
    for head in range(len(query)):
        keys = key[product.key_head[head]]
        if not is_well_cut(edit, head):
            continue
        expected = oracle.least_squares_query(query[head], keys, int(edit.counts[head]), 0.25)
        # W_k⁺ multiplies the dense product's rounding by the keys' condition, here up to 1e3, and σ by its square.
        assert_head_close(edited[head], expected, query[head], 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compute", [torch.float32, torch.float64])
def test_a_full_edit_in_narrow_storage_is_within_one_rounding(dtype: torch.dtype, compute: torch.dtype) -> None:
    weights = layer(20, heads=8, key_heads=4, query_kinds=SOUND_KINDS, key_kinds=KINDS)
    product, query, key = as_product(*weights, dtype=dtype)
    edit = suppress(product, Suppression(k=2))
    edited, moved = edit.update.apply(product, compute)
    assert edited.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for head in range(len(query)):
        if is_well_cut(edit, head):
            expected = oracle.projected_query(query[head], key[product.key_head[head]], int(edit.counts[head]), 0)
            assert_head_close(edited[head].double().numpy(), expected, query[head], tolerance)
        realised = np.linalg.norm(edited[head].double().numpy() - query[head]) / (np.linalg.norm(query[head]) or 1)
        np.testing.assert_allclose(moved[head].item(), realised, rtol=1e-5)


def test_a_change_below_the_resolution_of_storage_is_zero() -> None:
    """The intended change is smaller than bfloat16 can store."""
    product, *_ = as_product(*layer(21), dtype=torch.bfloat16)
    edit = suppress(product, Suppression(k=1, retain=0.999999))
    edited, moved = edit.update.apply(product)
    assert torch.equal(edited, product.query)
    assert moved.tolist() == [0.0] * 4
    assert torch.all(edit.energy_removed > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("key_kind", SOUND_KINDS)
@pytest.mark.parametrize("query_kind", SOUND_KINDS)
def test_suppressing_every_mode_scales_the_queries(query_kind: str, key_kind: str, dtype: torch.dtype) -> None:
    """All modes together span the row space of the queries, however small the last mode is."""
    weights = layer(22, query_kinds=(query_kind,), key_kinds=(key_kind,), size=8)
    product, query, _ = as_product(*weights, dtype=dtype)
    edit = suppress(product, Suppression(k=8, retain=0.5))
    edited = edit.update.apply(product)[0].double().numpy()
    assert edit.counts.tolist() == [8] * 4
    for head in range(len(query)):
        assert_head_close(edited[head], query[head] / 2, query[head], 1e-11 if dtype == torch.float64 else 1e-6)


def test_float64_weights_are_edited_in_float64() -> None:
    product, *_ = as_product(*layer(31))
    update = suppress(product, Suppression(k=1)).update
    assert torch.equal(update.apply(product, torch.float32)[0], update.apply(product, torch.float64)[0])


@pytest.mark.parametrize("channel", CHANNELS)
@settings(max_examples=60, deadline=None)
@given(
    weights=layers(("random", "spiked", "condition 1e3", "deficient", "zero")),
    k=st.integers(1, 4),
    retain=st.sampled_from([0.0, 0.4]),
)
def test_a_channel_edit_equals_the_increment_form(
    channel: Channel, weights: tuple[np.ndarray, np.ndarray], k: int, retain: float
) -> None:
    product, query, key = as_product(*weights)
    edit = suppress(product, Suppression(k=k, retain=retain, channel=channel))
    edited = edit.update.apply(product, torch.float64)[0].numpy()
    assert edit.unrealized_share is not None
    assert edit.leak is not None
    for head in range(len(query)):
        if not is_well_cut(edit, head):
            continue
        keys, count = key[product.key_head[head]], int(edit.counts[head])
        expected = oracle.channel_query(query[head], keys, channel, count, retain)
        values = oracle.modes(query[head].T @ keys, channel).values
        rest = values[count] if count < len(values) else 0.0
        distance = (values[count - 1] - rest) / values[0] if count else 1.0
        share = 1e-10 + 1e-11 / distance  # W_k⁺ multiplies rounding by the keys' condition
        assert_head_close(edited[head], expected.query, query[head], share)
        np.testing.assert_allclose(edit.unrealized_share[head].item(), expected.unrealized_share, atol=share)
        np.testing.assert_allclose(edit.leak[head].item(), expected.leak, atol=share)


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_edit_is_accurate_for_keys_of_condition_1e6(channel: Channel) -> None:
    product, query, key = as_product(
        *layer(23, key_kinds=("condition 1e6", "random"), query_kinds=("random", "spiked"))
    )
    edit = suppress(product, Suppression(k=1, channel=channel))
    edited = edit.update.apply(product, torch.float64)[0].numpy()
    for head in range(len(query)):
        expected = oracle.channel_query(query[head], key[product.key_head[head]], channel, 1, 0.0)
        assert_head_close(edited[head], expected.query, query[head], 1e-8)


@pytest.mark.parametrize("channel", ["full", *CHANNELS])
def test_a_device_without_float64_is_accurate_within_its_precision(channel: Channel) -> None:
    weights = layer(24, heads=6, key_heads=3, query_kinds=KINDS, key_kinds=("random", "spiked", "condition 1e3"))
    product, query, key = as_product(*weights, dtype=torch.float32)
    with PretendedDevices():
        elsewhere = on_mps(product)
        edit = suppress(elsewhere, Suppression(k=2, channel=channel))
        edited = edit.update.apply(elsewhere, torch.float64)[0].cpu().double().numpy()
    for head in range(len(query)):
        keys, count = key[product.key_head[head]], int(edit.counts[head])
        if channel == "full":
            expected = oracle.projected_query(query[head], keys, count, 0.0)
        else:
            expected = oracle.channel_query(query[head], keys, channel, count, 0.0).query
        values = oracle.modes(query[head].T @ keys, channel).values
        distance = (values[count - 1] - values[count]) / values[0] if count else 1.0
        assert_head_close(edited[head], expected, query[head], 1e-4 + 1e-6 / distance)


@settings(max_examples=40, deadline=None)
@given(weights=layers(), share=st.floats(0.05, 1.0), retain=st.sampled_from([0.0, 0.5]))
def test_energy_determines_the_number_of_modes_and_the_removed_share(
    weights: tuple[np.ndarray, np.ndarray], share: float, retain: float
) -> None:
    product, query, key = as_product(*weights)
    edit = suppress(product, Suppression(energy=share, retain=retain))
    for head in range(len(query)):
        values = oracle.modes(query[head].T @ key[product.key_head[head]]).values
        rank, count = int(product.modes.ranks[head]), int(edit.counts[head])
        if rank == 0:
            assert (count, float(edit.energy_removed[head])) == (0, 0.0)
            continue
        assert count == min(rank, oracle.count_for_energy(values, share))
        removed = (1 - retain**2) * np.sum(values[:count] ** 2) / np.sum(values**2)
        np.testing.assert_allclose(edit.energy_removed[head].item(), removed, atol=1e-10)
        suppressed = edit.suppressed[head].numpy()
        assert suppressed.shape == (int(edit.counts.max()),)
        np.testing.assert_allclose(suppressed[:count], values[:count], rtol=0, atol=1e-10 * values[0])
        assert np.all(suppressed[count:] == 0)
        following = values[count] if count < rank else np.nan
        if following > 1e-6 * values[0]:
            np.testing.assert_allclose(edit.gap[head].item(), values[count - 1] / following, rtol=1e-6)
        elif count == rank:
            assert edit.gap[head].isnan()


@pytest.mark.parametrize("retain", [0.0, 0.6])
@pytest.mark.parametrize("channel", CHANNELS)
def test_energy_of_a_channel_counts_modes_of_the_channel(channel: Channel, retain: float) -> None:
    product, query, key = as_product(*layer(25, query_kinds=("random", "spiked")))
    edit = suppress(product, Suppression(energy=0.6, channel=channel, retain=retain))
    for head in range(len(query)):
        dense = oracle.channel_part(query[head].T @ key[product.key_head[head]], channel)
        values = oracle.modes(dense, channel).values
        count = int(edit.counts[head])
        assert count == oracle.count_for_energy(values[:12], 0.6)
        kept = dense - (1 - retain) * oracle.modes(dense, channel).cut(count)
        removed = 1 - (np.linalg.norm(kept) / np.linalg.norm(dense)) ** 2
        np.testing.assert_allclose(edit.energy_removed[head].item(), removed, atol=1e-10)


@pytest.mark.parametrize("channel", ["full", *CHANNELS])
def test_an_update_is_a_low_rank_adapter(channel: Channel) -> None:
    """Before rounding `W_q' − W_q = B A` with `B` `[d_h, m]` and `A` `[m, D]`: m = k, or 2k for planes."""
    product, query, _ = as_product(*layer(26, size=8))
    edit = suppress(product, Suppression(k=2, channel=channel))
    width = 4 if channel == "antisymmetric" else 2
    directions = edit.update.directions(product)
    assert edit.update.left.shape == (4, 8, width)
    assert directions.shape == (4, width, 24)
    change = edit.update.apply(product, torch.float64)[0].numpy() - query
    np.testing.assert_allclose((edit.update.left @ directions).numpy(), change, atol=1e-12)
    for head in range(4):
        assert np.linalg.matrix_rank(change[head], tol=1e-10) == width


def test_directions_of_a_full_edit_equal_the_left_singular_vectors() -> None:
    product, query, key = as_product(*layer(27, query_kinds=SOUND_KINDS))
    edit = suppress(product, Suppression(k=3))
    directions = edit.update.directions(product).numpy()
    for head in range(4):
        left = oracle.modes(query[head].T @ key[product.key_head[head]]).left[:, :3]
        unit = directions[head] / np.linalg.norm(directions[head], axis=1, keepdims=True)
        np.testing.assert_allclose(np.abs(unit @ left), np.eye(3), atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(weights=layers(), seed=st.integers(0, 999), channel=st.sampled_from(["full", *CHANNELS]))
def test_the_effect_of_a_key_bias_equals_its_definition(
    weights: tuple[np.ndarray, np.ndarray], seed: int, channel: Channel
) -> None:
    product, query, key = as_product(*weights)
    bias = np.random.default_rng(seed).standard_normal(key.shape[:2])
    edit = suppress(product, Suppression(k=2, channel=channel))
    found = edit.update.key_bias_effect(product, torch.from_numpy(bias)).numpy()
    change = edit.update.apply(product, torch.float64)[0].numpy() - query
    for head in range(len(query)):
        expected = np.linalg.norm(change[head].T @ bias[product.key_head[head]])
        scale = np.linalg.norm(query[head]) + np.linalg.norm(change[head])
        np.testing.assert_allclose(found[head].item(), expected, rtol=1e-6, atol=1e-9 * scale)


def test_a_subset_of_heads_is_edited_as_in_the_full_layer() -> None:
    query, key = layer(28, heads=6, key_heads=3, query_kinds=SOUND_KINDS)
    whole = QKProduct(torch.from_numpy(query), torch.from_numpy(key))
    chosen = [4, 1, 5]
    part = QKProduct(torch.from_numpy(query[chosen]), torch.from_numpy(key), torch.tensor([2, 0, 2]))
    for channel in ("full", *CHANNELS):
        suppression = Suppression(k=2, channel=channel)
        edited = suppress(whole, suppression).update.apply(whole, torch.float64)[0][chosen]
        of_part = suppress(part, suppression).update.apply(part, torch.float64)[0]
        torch.testing.assert_close(of_part, edited, rtol=0, atol=1e-10)


def test_zero_heads_are_unchanged_and_do_not_affect_others() -> None:
    kinds = ("zero", "random", "zero", "random")
    product, *_ = as_product(*layer(29, query_kinds=kinds, key_kinds=("random", "zero")))
    for channel in ("full", *CHANNELS):
        edit = suppress(product, Suppression(k=2, channel=channel))
        edited, moved = edit.update.apply(product, torch.float64)
        assert edit.counts.tolist() == [0, 2, 0, 0]
        assert torch.equal(edited[[0, 2, 3]], product.query[[0, 2, 3]])
        assert moved.tolist()[1] > 0
        assert edit.gap.isnan().tolist() == [True, False, True, True]
