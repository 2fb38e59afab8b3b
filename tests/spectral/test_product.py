"""Test the Python object of a product against numpy's dense singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qkedit
from qkedit.spectral.product import QKProduct
from tests import tiny_models


@pytest.fixture(scope="module")
def product() -> QKProduct:
    generator = torch.Generator().manual_seed(5)
    return QKProduct(
        torch.randn(6, 8, 40, generator=generator), torch.randn(2, 8, 40, generator=generator, dtype=torch.float64)
    )


def test_factors_equal_those_of_the_dense_product(product: QKProduct) -> None:
    for head in range(len(product)):
        dense = product.dense(head).numpy()
        left, values, right = np.linalg.svd(dense)
        np.testing.assert_allclose(product.S[head], values[:8], rtol=1e-9)
        for mode in range(3):
            # A pair of singular vectors is defined up to a common sign.
            sign = np.sign(left[:, mode] @ product.U()[head, :, mode].numpy())
            np.testing.assert_allclose(sign * product.U(3)[head, :, mode], left[:, mode], atol=1e-7)
            np.testing.assert_allclose(sign * product.Vh(3)[head, mode], right[mode], atol=1e-7)
        rebuilt = product.U()[head] * product.S[head] @ product.Vh()[head]
        np.testing.assert_allclose(rebuilt, dense, atol=1e-9 * values[0])
        assert float(product.norm()[head]) == pytest.approx(np.linalg.norm(dense))


def test_heads_are_indexed_like_a_list(product: QKProduct) -> None:
    assert torch.equal(product[4].S, product.S[4:5])
    assert torch.equal(product[-1].S, product.S[5:])
    assert torch.equal(product[1:4:2].S, product.S[1:4:2])
    assert torch.equal(product[[5, 0]].S, product.S[[5, 0]])
    assert torch.equal(product[5].dense(0), product.dense(5))
    with pytest.raises(IndexError):
        product[6]


def test_the_repr_has_shapes_without_weights(product: QKProduct) -> None:
    assert repr(product) == "QKProduct(heads=6, key_heads=2, head_size=8, width=40, torch.float32, cpu)"


def test_modes_beyond_the_rank_have_no_direction() -> None:
    query = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))
    query[:, 2:] = 0
    flat = QKProduct(query, torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(2)))
    assert int(flat.modes.ranks[0]) == 2
    assert torch.count_nonzero(flat.U()[0, :, 2:]) == 0
    assert torch.count_nonzero(flat.Vh()[0, 2:]) == 0
    torch.testing.assert_close(flat.U(2).mT @ flat.U(2), torch.eye(2, dtype=torch.float64)[None])
    assert 1 < float(flat.effective_rank[0]) <= 2


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3.5", "phi4-multimodal"])
def test_the_product_of_a_loaded_model_equals_that_of_its_weights(family: str) -> None:
    model = tiny_models.model(family, "float32")
    layer = 3 if family == "qwen3.5" else 1
    product = qkedit.product_of(model, layer, heads="1-2")
    attention = model.get_decoder().layers[layer].self_attn
    assert len(product) == 2
    if family == "qwen2-vl":
        query, key = attention.q_proj.weight, attention.k_proj.weight
        group = attention.q_proj.out_features // attention.k_proj.out_features
        size = attention.head_dim
        for place, head in enumerate((1, 2)):
            own = query[head * size : (head + 1) * size].double()
            read = key[head // group * size : (head // group + 1) * size].double()
            torch.testing.assert_close(product.dense(place), (own.T @ read).detach())
    torch.testing.assert_close(qkedit.QKProduct.from_model(model, layer)[1:3].S, product.S, rtol=0, atol=0)
