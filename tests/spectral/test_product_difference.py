"""Test differences of products against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qkedit.spectral.changes.difference import HeadWeights, product_difference, product_norm
from qkedit.spectral.changes.figures import rounding_noise
from tests.spectral.test_combination import random

HEADS, SIZE, WIDTH = 3, 6, 40


def weights_of(query: Tensor, keys: Tensor, *, exact: bool = False) -> HeadWeights:
    noises = [torch.zeros(HEADS).double() if exact else rounding_noise(part) for part in (query, keys)]
    return HeadWeights(query.double(), keys.double(), *noises)


def dense(one: HeadWeights, other: HeadWeights) -> Tensor:
    return other.query.mT @ other.keys - one.query.mT @ one.keys


def without_modes(query: Tensor, keys: Tensor, count: int) -> Tensor:
    """Return the queries without the dominant modes of the products, by the dense decomposition."""
    left = torch.linalg.svd(query.double().mT @ keys.double()).U[..., :count]
    return query.double() - query.double() @ left @ left.mT


@pytest.mark.parametrize("keys_change", [False, True])
def test_norm_and_rank_equal_those_of_the_dense_difference(keys_change: bool) -> None:
    """The rank equals that of the dense matrix, and the norm follows from its singular values."""
    query, keys = random(HEADS, SIZE, WIDTH, seed=1), random(HEADS, SIZE, WIDTH, seed=2)
    changed_query = query.clone()
    changed_query[0] += random(SIZE, 1, seed=3) @ random(1, WIDTH, seed=4)
    changed_query[1] = 0
    changed_keys = keys.clone()
    if keys_change:
        changed_keys[0] += random(SIZE, 2, seed=5) @ random(2, WIDTH, seed=6)
    one, other = weights_of(query, keys, exact=True), weights_of(changed_query, changed_keys, exact=True)
    expected = torch.linalg.svdvals(dense(one, other))
    found = product_difference(one, other)
    assert torch.allclose(found.norm, expected.square().sum(-1).sqrt(), rtol=1e-12, atol=1e-12)
    assert found.ranks == (expected > 1e-10).sum(-1).tolist() == [1 + 2 * keys_change, SIZE, 0]
    assert torch.allclose(product_norm(query, keys), torch.linalg.matrix_norm(query.mT @ keys))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("keys_change", [False, True])
def test_rounding_adds_no_rank(dtype: torch.dtype, keys_change: bool) -> None:
    query, keys = random(HEADS, SIZE, WIDTH, seed=1).to(dtype), random(HEADS, SIZE, WIDTH, seed=2).to(dtype)
    after = without_modes(query, keys, 2).to(dtype)
    changed_keys = (keys.double() * (1 + 0.2 * torch.finfo(dtype).eps)).to(dtype) if keys_change else keys
    if keys_change:
        changed_keys[:, 0, 0] = torch.nextafter(keys[:, 0, 0], torch.tensor(9.0, dtype=dtype))
    found = product_difference(weights_of(query, keys), weights_of(after, changed_keys))
    assert found.ranks == [2, 2, 2]


def test_keys_of_reduced_rank_hide_changes() -> None:
    query, keys = random(HEADS, SIZE, WIDTH, seed=1), random(HEADS, SIZE, WIDTH, seed=2)
    keys[:, 2:] = 0
    one, other = weights_of(query, keys, exact=True), weights_of(query + random(HEADS, SIZE, WIDTH, seed=3), keys)
    assert product_difference(one, other).ranks == [2, 2, 2]


def test_invalid_weights_have_no_figures() -> None:
    query, keys = random(HEADS, SIZE, WIDTH, seed=1), random(HEADS, SIZE, WIDTH, seed=2)
    broken = query.clone()
    broken[0, 0, 0], broken[1] = torch.nan, 1e200
    huge_keys = keys.clone()
    huge_keys[1] = 1e200
    one = HeadWeights(query, huge_keys, torch.zeros(HEADS).double(), torch.zeros(HEADS).double())
    for keys_of_other in (huge_keys, huge_keys * 2):
        found = product_difference(one, HeadWeights(broken, keys_of_other, one.query_noise, one.key_noise))
        assert found.norm.isnan().tolist() == [True, True, False]
        assert [rank is None for rank in found.ranks] == [True, True, False]
