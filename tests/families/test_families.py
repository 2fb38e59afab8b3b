"""Test every family end to end: steer a tiny checkpoint, load and run it in transformers, compare the change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import qkedit
from qkedit.checkpoint.architecture.heads import AttentionLayer, HeadNorm, HeadRows
from qkedit.checkpoint.query_modules import query_modules
from qkedit.inspection.spectra import inspect
from qkedit.steering.plan import plan_for
from qkedit.steering.steer_options import SteerOptions
from qkedit.steering.verify import verify
from tests import tiny_configs
from tests.checkpoint.written import opened
from tests.families.built import IDS, VARIANTS, Build, loaded, stored_tensors, understood
from tests.families.module_oracle import Heads, attention_modules, projections, rotation, suppressed

HEADS = range(1, 4)  # head 0 is not edited
K = 2


def head_values(rows: HeadRows, tensors: dict[str, np.ndarray], *, flat: bool = False) -> np.ndarray:
    values = tensors[rows.tensor.name].astype(np.float64)
    values = values.reshape(-1) if flat else values
    return np.stack([values[start : start + rows.head_size] for start in rows.starts])


def fold_of(norm: HeadNorm | None, heads: int, head_size: int, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Return the matrix by which a norm enters the product, by HeadNorm's docstring."""
    identity = np.tile(np.eye(head_size), (heads, 1, 1))
    if norm is None or norm.gain is None:
        return identity
    gains = head_values(norm.gain, tensors, flat=True)[:, :, None]
    if norm.kind == "one-plus rms":
        return (1 + gains) * identity
    return gains * (identity - 1 / head_size) if norm.kind == "layer norm" else gains * identity


@pytest.mark.parametrize(("family", "published"), VARIANTS, ids=IDS)
def test_projections_equal_those_of_the_modules(family: str, published: bool, build: Build) -> None:
    base = build(family, published)
    stack, tensors = understood(base.directory), stored_tensors(base.directory)
    modules = attention_modules(base.model)
    assert {layer.index for layer in stack.layers} <= modules.keys()
    for layer in stack.layers:
        computed = projections(modules[layer.index], 64)
        sides: list[tuple[HeadRows, HeadRows | None, HeadNorm | None, Heads]] = [
            (layer.query, layer.query_bias, layer.query_norm, computed.query),
            (layer.key, layer.key_bias, layer.key_norm, computed.key),
        ]
        for rows, bias, norm, heads in sides:
            np.testing.assert_allclose(head_values(rows, tensors), heads.weight, atol=1e-6)
            bias_values = head_values(bias, tensors) if bias else np.zeros_like(heads.bias)
            np.testing.assert_allclose(bias_values, heads.bias, atol=1e-6)
            fold = fold_of(norm, len(rows.starts), rows.head_size, tensors)
            np.testing.assert_allclose(fold, heads.fold, atol=2e-5)
        pairs = "none" if layer.rope == "none" else "interleaved" if "interleaved" in layer.rope else "halves"
        assert rotation(modules[layer.index], 64) == pairs


@pytest.mark.parametrize(("family", "published"), VARIANTS, ids=IDS)
def test_the_query_module_is_named(family: str, published: bool, build: Build) -> None:
    base = build(family, published)
    stack, tensors = understood(base.directory), stored_tensors(base.directory)
    modules = query_modules(opened(base.directory), stack.layers)
    for layer in stack.layers:
        found = modules[layer.query.tensor.name]
        weight = base.model.get_submodule(found.path).weight.detach().numpy()
        assert len(weight) == found.rows
        for start, rows in zip(found.starts, head_values(layer.query, tensors), strict=True):
            np.testing.assert_array_equal(weight[start : start + layer.head_size], rows)


def test_every_layer_with_a_query_key_product_is_found(build: Build) -> None:
    # A layer is skipped exactly if its module projects no keys.
    for family in tiny_configs.FAMILIES:
        base = build(family, True)
        stack, modules = understood(base.directory), attention_modules(base.model)
        own_keys = {
            index
            for index, module in modules.items()
            if any(hasattr(module, name) for name in ("k_proj", "qkv_proj", "att_proj"))
        }
        assert {layer.index for layer in stack.layers} == own_keys, family
        assert {skipped.index for skipped in stack.skipped} == set(range(stack.layer_count)) - own_keys


def edited_rows(layers: tuple[AttentionLayer, ...]) -> dict[str, list[int]]:
    return {
        layer.query.tensor.name: [
            row
            for head in HEADS
            for row in range(layer.query.starts[head], layer.query.starts[head] + layer.head_size)
        ]
        for layer in layers
    }


@pytest.mark.parametrize(("family", "published"), VARIANTS, ids=IDS)
def test_the_edit_of_a_family_equals_that_of_the_dense_products(
    family: str, published: bool, build: Build, tmp_path: Path
) -> None:
    base, out = build(family, published), tmp_path / "edited"
    stack = understood(base.directory)
    qkedit.steer(str(base.directory), out=out, layers="all", heads="1-3", k=K, allow_text_only=True)
    assert verify(out, base=str(base.directory)).mismatches == ()

    before, after = stored_tensors(base.directory), stored_tensors(out)
    assert before.keys() == after.keys()
    rows = edited_rows(stack.layers)
    for name, old in before.items():
        different = old.view(np.uint8) != after[name].view(np.uint8)
        if name in rows:
            assert np.flatnonzero(different.any(axis=1)).tolist() == rows[name], name
        else:
            assert not different.any(), name

    new_model = loaded(family, out)
    old_modules, new_modules = attention_modules(base.model), attention_modules(new_model)
    for layer in stack.layers:
        old, new = projections(old_modules[layer.index], 64), projections(new_modules[layer.index], 64)
        scale = np.linalg.norm(old.products(), axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(new.products() / scale, suppressed(old, HEADS, K) / scale, atol=2e-5)
        np.testing.assert_array_equal(new.query.bias, old.query.bias)
        np.testing.assert_array_equal(new.key.weight, old.key.weight)

    ids = torch.arange(20, 32)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = new_model(**inputs).logits
        assert logits.isfinite().all()
        assert not torch.equal(logits, base.model(**inputs).logits)


@pytest.mark.parametrize(("family", "published"), VARIANTS, ids=IDS)
def test_every_family_can_be_planned_and_inspected(family: str, published: bool, build: Build) -> None:
    base = build(family, published)
    plan = plan_for(str(base.directory), SteerOptions(layers="all", allow_text_only=True))
    expected = [layer.index for layer in understood(base.directory).layers]
    assert [layer["layer"] for layer in plan.as_dict()["layers"]] == expected
    modules = attention_modules(base.model)
    for spectra in inspect(plan).layers:
        products = projections(modules[spectra.layer], 64).products()
        for head, product in zip(spectra.heads, products, strict=True):
            dense = np.linalg.svd(product, compute_uv=False)[: len(head.singular_values)]
            np.testing.assert_allclose(head.singular_values, dense, atol=3e-5 * dense[0])
