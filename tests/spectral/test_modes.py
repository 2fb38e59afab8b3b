"""Test the factored product's modes against dense decompositions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.spectral.channels import channel_modes
from qkedit.spectral.factors import NonFiniteWeightError, factor
from qkedit.spectral.mode_selection import effective_rank, energy, gap, modes_for_energy
from qkedit.spectral.product import QKProduct
from tests.pretended_devices import PretendedDevices
from tests.spectral import oracle
from tests.spectral.weights import KINDS, as_product, layer, layers, on_mps

CHANNELS = ("full", "symmetric", "antisymmetric")


def channel_values(product: QKProduct, channel: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the channel's values `[H, n]` and ranks `[H]`."""
    modes = product.modes if channel == "full" else channel_modes(product.stack_factor, channel)  # type: ignore[arg-type]
    return modes.values.numpy(), modes.ranks.numpy()


def assert_values_match(product: QKProduct, query: np.ndarray, key: np.ndarray, channel: str, share: float) -> None:
    values, ranks = channel_values(product, channel)
    for head in range(len(query)):
        keys = key[product.key_head[head]]
        dense = query[head].T @ keys
        expected = oracle.modes(dense, channel).values
        count = min(values.shape[1], len(expected))
        # The product of orthogonal heads may consist of rounding only: then the weights determine the scale.
        scale = max(expected[0], 1e-3 * np.linalg.norm(query[head], 2) * np.linalg.norm(keys, 2))
        np.testing.assert_allclose(values[head, :count], expected[:count], rtol=0, atol=share * scale)
        assert np.all(np.abs(values[head, count:]) <= share * scale)
        assert ranks[head] <= len(expected)


@pytest.mark.parametrize("channel", CHANNELS)
@settings(max_examples=40, deadline=None)
@given(weights=layers())
def test_values_match_a_dense_decomposition(channel: str, weights: tuple[np.ndarray, np.ndarray]) -> None:
    product, query, key = as_product(*weights)
    assert_values_match(product, query, key, channel, 1e-10)


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_of_narrow_weights_equal_those_of_the_stored_numbers(channel: str, dtype: torch.dtype) -> None:
    weights = layer(1, query_kinds=("random", "spiked", "zero", "deficient"), key_kinds=("condition 1e3", "random"))
    product, query, key = as_product(*weights, dtype=dtype)
    assert_values_match(product, query, key, channel, 1e-10)


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_device_without_float64_has_five_digits(channel: str) -> None:
    weights = layer(2, heads=6, key_heads=3, query_kinds=KINDS, key_kinds=("random", "condition 1e6", "deficient"))
    product, query, key = as_product(*weights, dtype=torch.float32)
    with PretendedDevices():
        assert_values_match(on_mps(product), query, key, channel, 1e-5)


def test_small_values_of_ill_conditioned_products_are_accurate() -> None:
    """Squaring a condition number of 1e6 would lose values a trillion times smaller than the first."""
    random = np.random.default_rng(3)
    size, hidden = 8, 48
    rotation = np.linalg.qr(random.standard_normal((size, size)))[0]
    values = np.logspace(0, -6, size)
    right = np.linalg.qr(random.standard_normal((hidden, size)))[0].T
    # W_q = R diag(s) Q₁ᵀ and W_k = R diag(s) Q₂ᵀ share R, so the product's values are s² without cancellation.
    query = rotation @ (values[:, None] * right)
    key = rotation @ (values[:, None] * np.roll(right, 1, axis=1))
    product, *_ = as_product(query[None], key[None])
    np.testing.assert_allclose(product.modes.values[0].numpy(), values**2, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(weights=layers())
def test_factors_reproduce_the_gram_matrix_and_are_unique(weights: tuple[np.ndarray, np.ndarray]) -> None:
    query = torch.from_numpy(weights[0])
    lower = factor(query, "query")
    gram = query @ query.mT
    scale = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    assert torch.all((lower @ lower.mT - gram).abs() <= 1e-13 * scale)
    assert torch.all(lower.triu(1) == 0)
    assert torch.all(lower.diagonal(dim1=-2, dim2=-1) >= 0)


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("hidden", [3, 6, 9])
def test_heads_may_be_wider_than_the_residual_stream(channel: str, hidden: int) -> None:
    """Miniature models have hidden sizes below d_h or 2 d_h."""
    product, query, key = as_product(*layer(4, size=6, hidden=hidden))
    assert_values_match(product, query, key, channel, 1e-10)


@settings(max_examples=40, deadline=None)
@given(weights=layers())
def test_ranks_match_the_construction(weights: tuple[np.ndarray, np.ndarray]) -> None:
    product, query, key = as_product(*weights)
    for head, count in enumerate(product.modes.ranks.tolist()):
        keys = key[product.key_head[head]]
        # For generic factors, the rank of the product is the smaller of their ranks.
        factor_ranks = [
            np.linalg.matrix_rank(factor, tol=1e-9 * (np.linalg.norm(factor) or 1)) for factor in (query[head], keys)
        ]
        assert count == min(factor_ranks)


@pytest.mark.parametrize("channel", CHANNELS)
def test_heads_with_a_vanishing_product_have_no_modes(channel: str) -> None:
    """With queries and keys in complementary subspaces of the head, the product consists of rounding only."""
    random = np.random.default_rng(5)
    rotation = np.linalg.qr(random.standard_normal((6, 6)))[0]
    query = rotation[:, :3] @ random.standard_normal((3, 24))
    key = rotation[:, 3:] @ random.standard_normal((3, 24))
    product, *_ = as_product(query[None], key[None])
    assert channel_values(product, channel)[1].tolist() == [0]


def test_antisymmetric_part_of_equal_queries_and_keys_has_no_modes() -> None:
    random = np.random.default_rng(6)
    shared = random.standard_normal((1, 6, 24))
    product, *_ = as_product(shared, shared)
    assert channel_values(product, "antisymmetric")[1].tolist() == [0]
    assert channel_values(product, "symmetric")[1].tolist() == [6]


@pytest.mark.parametrize("channel", CHANNELS)
def test_vectors_are_orthonormal(channel: str) -> None:
    product, *_ = as_product(*layer(7, query_kinds=("random", "spiked"), key_kinds=("random",)))
    full = channel == "full"
    vectors = product.modes.left if full else channel_modes(product.stack_factor, channel).vectors  # type: ignore[arg-type]
    identity = torch.eye(vectors.shape[-1], dtype=torch.float64)
    torch.testing.assert_close(vectors.mT @ vectors, identity.expand(len(vectors), -1, -1), rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0, 100), min_size=1, max_size=8).map(lambda drawn: sorted(drawn, reverse=True)),
    share=st.floats(0.01, 1.0),
)
def test_rank_entropy_and_gap_equal_their_definitions(values: list[float], share: float) -> None:
    tensor = torch.tensor([values], dtype=torch.float64)
    array = np.array(values)
    if array[0] < 1e-3:
        return
    np.testing.assert_allclose(energy(tensor)[0], array**2 / np.sum(array**2), atol=1e-14)
    np.testing.assert_allclose(effective_rank(tensor)[0], oracle.effective_rank(array), rtol=1e-9)
    assert modes_for_energy(tensor, share).item() == oracle.count_for_energy(array, share)
    ranks = int(np.sum(array > 1e-12 * array[0]))
    for count in range(ranks + 1):
        found = gap(tensor, torch.tensor([count]), torch.tensor([ranks])).item()
        np.testing.assert_allclose(found, oracle.gap(array, count, ranks), equal_nan=True)


def test_a_zero_spectrum_has_defined_numbers() -> None:
    nothing = torch.zeros(1, 4, dtype=torch.float64)
    assert energy(nothing).tolist() == [[0.0] * 4]
    assert effective_rank(nothing).tolist() == [0.0]


def test_an_explicit_key_head_is_used() -> None:
    query, key = layer(8, heads=4, key_heads=4)
    order = [3, 0, 0, 2]
    product = QKProduct(torch.from_numpy(query), torch.from_numpy(key), torch.tensor(order))
    for channel in CHANNELS:
        assert_values_match(product, query, key, channel, 1e-10)
    for head, key_head in enumerate(order):
        np.testing.assert_allclose(product.dense(head), query[head].T @ key[key_head], atol=1e-14)


def test_query_heads_of_a_group_are_consecutive() -> None:
    product, *_ = as_product(*layer(9, heads=6, key_heads=2))
    assert product.key_head.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("query", "key"),
    [((4, 6, 24), (3, 6, 24)), ((4, 6, 24), (2, 5, 24)), ((4, 6, 24), (2, 6, 23)), ((6, 24), (6, 24))],
)
def test_inconsistent_shapes_are_refused(query: tuple[int, ...], key: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must agree|cannot share"):
        QKProduct(torch.zeros(query), torch.zeros(key))


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("projection", "head"), [("query", 2), ("key", 1)])
def test_a_nan_weight_is_refused_by_name(channel: str, number: float, projection: str, head: int) -> None:
    query, key = layer(10)
    (query if projection == "query" else key)[head, 1, 5] = number
    product, *_ = as_product(query, key)
    with pytest.raises(NonFiniteWeightError) as caught:
        channel_values(product, channel)
    assert (caught.value.projection, caught.value.head) == (projection, head)
