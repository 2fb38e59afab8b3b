"""Fused layouts of models whose code is their own, in checkpoints made by hand with the published names.

The unpacking in these tests follows the models' published forward passes, written with numpy's reshapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qkedit
from qkedit.checkpoint.layers import attention_stack
from tests.checkpoint.written import opened

HEADS, KEY_HEADS, SIZE, HIDDEN, LAYERS = 4, 2, 8, 32, 2
K = 2

Unpacked = tuple[np.ndarray, np.ndarray, np.ndarray]  # queries [H, d, D], keys [H_kv, d, D], values


def unpack_c_attn(weight: np.ndarray) -> Unpacked:
    # Qwen-VL: `query, key, value = c_attn(x).split(split_size)`, then `.view(…, num_heads, head_dim)`.
    query, key, value = (part.reshape(HEADS, SIZE, HIDDEN) for part in np.split(weight, 3))
    return query, key, value


def unpack_wqkv(weight: np.ndarray) -> Unpacked:
    # InternLM2: `rearrange(wqkv(x), "b q (h gs d) -> b q h gs d", gs=2 + num_key_value_groups)`, queries
    # `[..., :num_key_value_groups, :]` rearranged to "(h gs)", key `[..., -2, :]`, value `[..., -1, :]`.
    grouped = weight.reshape(KEY_HEADS, 2 + HEADS // KEY_HEADS, SIZE, HIDDEN)
    return grouped[:, :-2].reshape(HEADS, SIZE, HIDDEN), grouped[:, -2], grouped[:, -1]


def unpack_stacked(weight: np.ndarray) -> Unpacked:
    # Molmo 2 and Phi: `split((H·d, H_kv·d, H_kv·d))`.
    query, key, value = np.split(weight, [HEADS * SIZE, (HEADS + KEY_HEADS) * SIZE])
    return tuple(part.reshape(-1, SIZE, HIDDEN) for part in (query, key, value))  # type: ignore[return-value]


@dataclass(frozen=True)
class Published:
    """A family as its checkpoints are published."""

    tensor: str  # of one layer
    rows: int
    unpack: Callable[[np.ndarray], Unpacked]
    vision: str
    config: dict[str, Any]
    bias: bool = False


TEXT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
}
PUBLISHED = {
    "Qwen-VL": Published(
        "transformer.h.{}.attn.c_attn",
        3 * HEADS * SIZE,
        unpack_c_attn,
        "transformer.visual.transformer.resblocks.0.attn.in_proj.weight",
        {
            "model_type": "qwen",
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "kv_channels": SIZE,
            "visual": {"layers": 1},
        },
        bias=True,
    ),
    "InternVL2 on InternLM2": Published(
        "language_model.model.layers.{}.attention.wqkv",
        (HEADS + 2 * KEY_HEADS) * SIZE,
        unpack_wqkv,
        "vision_model.encoder.layers.0.attn.qkv.weight",
        {"model_type": "internvl_chat", "llm_config": {"model_type": "internlm2", **TEXT}},
    ),
    "InternVL2 on Phi-3": Published(
        "language_model.model.layers.{}.self_attn.qkv_proj",
        (HEADS + 2 * KEY_HEADS) * SIZE,
        unpack_stacked,
        "vision_model.encoder.layers.0.attn.qkv.weight",
        {"model_type": "internvl_chat", "llm_config": {"model_type": "phi3", **TEXT}},
    ),
    "Molmo2": Published(
        "model.transformer.blocks.{}.self_attn.att_proj",
        (HEADS + 2 * KEY_HEADS) * SIZE,
        unpack_stacked,
        "model.vision_backbone.image_vit.transformer.resblocks.0.attention.wq.weight",
        {"model_type": "molmo2", "text_config": {"model_type": "molmo2_text", "head_dim": SIZE, **TEXT}},
    ),
}


def written(directory: Path, published: Published) -> Path:
    generator = np.random.default_rng(3)
    tensors = {published.vision: generator.standard_normal((24, 8))}
    for layer in range(LAYERS):
        name = published.tensor.format(layer)
        tensors[f"{name}.weight"] = generator.standard_normal((published.rows, HIDDEN))
        if published.bias:
            tensors[f"{name}.bias"] = generator.standard_normal(published.rows)
    directory.mkdir()
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(published.config))
    return directory


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_end_to_end(name: str, tmp_path: Path) -> None:
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
def test_a_published_layout_is_understood(name: str, tmp_path: Path) -> None:
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
