"""Test products with the gain of the norm before them against the norms and projections of transformers' modules."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

import qkedit
from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.architecture.schema import NormKind
from qkedit.errors import UnsupportedForm
from tests.families.built import IDS, VARIANTS, Build, loaded, stored_tensors, understood
from tests.families.module_oracle import attention_modules, projections, suppressed

# Their records name no norm before the projections: it follows them, or depends on a setting.
WITHOUT = {"chameleon", "exaone4.5", "molmo2", "molmo2-o"}
HEADS, K = range(1, 4), 2


def gain_of(layer: AttentionLayer, tensors: dict[str, np.ndarray]) -> np.ndarray:
    found = layer.input_gain
    assert found is not None
    return tensors[found.tensor.name].astype(np.float64) + (found.kind is NormKind.ONE_PLUS_RMS)


def applied_gains(model: Any) -> dict[int, Tensor]:
    """Run a model, and return the factor of each layer's norm before its attention: output over normalised input.

    The norm is the module whose output is the tensor that the attention receives.
    """
    outputs: list[tuple[Tensor, Tensor, bool]] = []
    found: dict[int, Tensor] = {}
    hooks = []

    def remember(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and arguments and isinstance(arguments[0], Tensor):
            outputs.append((arguments[0], output, "LayerNorm" in type(module).__name__))

    def look_up(index: int) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            given = arguments[0] if arguments else named["hidden_states"]
            (before, after, centred), *_ = [entry for entry in reversed(outputs) if entry[1] is given]
            before = before - before.mean(-1, keepdim=True) if centred else before
            found[index] = after / (before / before.square().mean(-1, keepdim=True).sqrt())

        return hook

    for module in model.modules():
        if not list(module.children()):
            hooks.append(module.register_forward_hook(remember))
    for index, module in attention_modules(model).items():
        hooks.append(module.register_forward_pre_hook(look_up(index), with_kwargs=True))
    ids = torch.arange(20, 32)[None]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(("family", "published"), VARIANTS, ids=IDS)
def test_the_recorded_gain_is_that_of_the_norm_whose_output_the_attention_reads(
    family: str, published: bool, build: Build
) -> None:
    base = build(family, published)
    stack, tensors = understood(base.directory), stored_tensors(base.directory)
    if family in WITHOUT:
        assert all(layer.input_gain is None for layer in stack.layers)
        return
    applied = applied_gains(base.model)
    for layer in stack.layers:
        factors = applied[layer.index].flatten(0, -2).double().numpy()
        expected = np.broadcast_to(gain_of(layer, tensors), factors.shape)
        np.testing.assert_allclose(factors, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3-vl", "gemma3", "aya-vision", "lfm2-vl"])
def test_an_edit_of_a_folded_product_equals_that_of_the_dense_product(
    family: str, build: Build, tmp_path: Path
) -> None:
    base, out = build(family, True), tmp_path / "edited"
    stack, tensors = understood(base.directory), stored_tensors(base.directory)
    qkedit.steer(base.directory, out=out, layers="all", heads="1-3", k=K, product="folded")
    assert qkedit.verify(out, base=base.directory).mismatches == ()
    old_modules, new_modules = attention_modules(base.model), attention_modules(loaded(family, out))
    for layer in stack.layers:
        old, new = projections(old_modules[layer.index], 64), projections(new_modules[layer.index], 64)
        gain = np.diag(gain_of(layer, tensors))
        before, after = gain @ old.products() @ gain, gain @ new.products() @ gain
        scale = np.linalg.norm(before, axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(after / scale, _suppressed(before, HEADS, K) / scale, atol=2e-5)
        assert np.abs(new.products() - suppressed(old, HEADS, K)).max() > 1e-3 * scale.max()  # not the raw product's
        np.testing.assert_array_equal(new.key.weight, old.key.weight)


@pytest.mark.parametrize(
    "options",
    [
        {"channel": "symmetric"},
        {"channel": "antisymmetric", "retain": 0.5},
        {"protect": "sink:2"},
        {"control": "index", "seed": 3},
        {"control": "norm", "seed": 3},
        {"energy": 0.4},
    ],
    ids=str,
)
def test_it_is_the_edit_of_the_model_whose_weights_hold_the_gains(
    options: dict[str, Any], build: Build, tmp_path: Path
) -> None:
    base = build("qwen2-vl", True)
    sink = qkedit.sink_of(base.model) if "protect" in options else None
    layers, tensors = understood(base.directory).layers, stored_tensors(base.directory)
    gains = {layer.query.tensor.name: gain_of(layer, tensors) for layer in layers}
    held = shutil.copytree(base.directory, tmp_path / "held")
    for shard in held.glob("*.safetensors"):
        content = load_file(shard)
        for layer in layers:
            gain = gains[layer.query.tensor.name].astype(np.float32)
            for tensor in (layer.query.tensor, layer.key.tensor):
                if tensor.name in content:
                    content[tensor.name] = content[tensor.name] * gain
        save_file(content, shard, {"format": "pt"})
    own = {"layers": "all", "k": K, "sink": sink, **options}
    qkedit.steer(base.directory, out=tmp_path / "folded", product="folded", **own)
    qkedit.steer(held, out=tmp_path / "raw", **own)
    folded, raw = stored_tensors(tmp_path / "folded"), stored_tensors(tmp_path / "raw")
    for name, gain in gains.items():
        changed = np.linalg.norm(folded[name] - tensors[name])
        assert changed > 0.01 * np.linalg.norm(tensors[name])
        np.testing.assert_allclose(folded[name] * gain, raw[name], atol=1e-4 * np.abs(raw[name]).max())


def _suppressed(products: np.ndarray, heads: range, k: int) -> np.ndarray:
    expected = products.copy()
    for head in heads:
        left, _, _ = np.linalg.svd(expected[head])
        expected[head] -= left[:, :k] @ (left[:, :k].T @ expected[head])
    return expected


def test_spectra_of_a_folded_product_are_those_of_the_dense_one(build: Build) -> None:
    base = build("qwen2-vl", True)
    layer = understood(base.directory).layers[1]
    gain = np.diag(gain_of(layer, stored_tensors(base.directory)))
    dense = gain @ projections(attention_modules(base.model)[layer.index], 64).products() @ gain
    found = qkedit.inspect(base.directory, layers=layer.index, product="folded").layers[0]
    for head in found.heads:
        expected = np.linalg.svd(dense[head.head], compute_uv=False)[: len(head.singular_values)]
        np.testing.assert_allclose(head.singular_values, expected, rtol=1e-5, atol=1e-6)


def test_a_loaded_model_is_edited_as_its_checkpoint_is(build: Build, tmp_path: Path) -> None:
    base = build("qwen2-vl", True)
    qkedit.steer(base.directory, out=tmp_path / "edited", layers="all", product="folded")
    written = stored_tensors(tmp_path / "edited")
    with qkedit.edit(base.model, layers="all", product="folded"):
        modules = attention_modules(base.model)
        for layer in understood(base.directory).layers:
            weight: Any = modules[layer.index].q_proj.weight  # type: ignore[union-attr]
            np.testing.assert_array_equal(weight.detach().numpy(), written[layer.query.tensor.name])


def test_the_manifest_records_a_folded_product(build: Build, tmp_path: Path) -> None:
    base = build("qwen2-vl", True)
    report = qkedit.steer(base.directory, out=tmp_path / "edited", layers="0", product="folded")
    assert report.manifest.options is not None
    assert report.manifest.options.product == "folded"
    assert "with the gain of the norm before it" in (tmp_path / "edited" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("family", sorted(WITHOUT & {family for family, _ in VARIANTS}))
def test_a_model_without_a_recorded_norm_is_refused(family: str, build: Build) -> None:
    with pytest.raises(UnsupportedForm, match="no record names the norm before the projections"):
        qkedit.plan(build(family, True).directory, layers="all", product="folded", allow_text_only=True)
