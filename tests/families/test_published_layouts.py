"""Test fused layouts of models with remote code, on checkpoints with their published names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import qkedit
from qkedit.checkpoint.architecture.layers import attention_stack
from tests.checkpoint.written import opened
from tests.families.published import HEADS, PUBLISHED, SIZE, written

K = 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_edit_of_a_published_layout_equals_that_of_the_dense_products(name: str, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    base = written(tmp_path / "base", published)
    assert attention_stack(opened(base)).family != "unknown"
    qkedit.steer(str(base), out=tmp_path / "edited", layers="1", heads="0,3", k=K)

    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "edited" / "model.safetensors")
    edited = f"{published.tensor.format(1)}.weight"
    assert [tensor for tensor in before if before[tensor].tobytes() != after[tensor].tobytes()] == [edited]

    old_query, *old_others = published.unpack(before[edited].astype(np.float64))
    new_query, *new_others = published.unpack(after[edited].astype(np.float64))
    for old, new in zip(old_others, new_others, strict=True):
        np.testing.assert_array_equal(new, old)
    keys = old_others[0]
    for head in range(HEADS):
        key = keys[head // (HEADS // len(keys))]
        product = old_query[head].T @ key
        if head in (0, 3):
            left, _, _ = np.linalg.svd(product)
            expected = product - left[:, :K] @ (left[:, :K].T @ product)
        else:
            expected = product
            np.testing.assert_array_equal(new_query[head], old_query[head])
        np.testing.assert_allclose(new_query[head].T @ key, expected, atol=1e-5 * np.linalg.norm(product))


@pytest.mark.parametrize("name", PUBLISHED)
def test_projections_of_a_published_layout_are_found(name: str, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    base = written(tmp_path / "base", published)
    tensors = load_file(base / "model.safetensors")
    for layer in attention_stack(opened(base)).layers:
        weight = tensors[f"{published.tensor.format(layer.index)}.weight"]
        queries, keys, _ = published.unpack(weight)
        for rows, heads in ((layer.query, queries), (layer.key, keys)):
            assert len(rows.starts) == len(heads)
            for start, head in zip(rows.starts, heads, strict=True):
                np.testing.assert_array_equal(weight[start : start + SIZE], head)
        assert (layer.query_bias is not None) == published.bias
        if layer.key_bias is not None:
            assert layer.key_bias.starts == layer.key.starts
