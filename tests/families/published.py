"""Write checkpoints with the published names of models that have remote code.

The unpacking here follows the models' published forward passes, written with numpy's reshapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HEADS, KEY_HEADS, SIZE, HIDDEN, LAYERS = 4, 2, 8, 32, 2

Unpacked = tuple[np.ndarray, np.ndarray, np.ndarray]  # queries [H, d, D], keys [H_kv, d, D], values


def _unpack_c_attn(weight: np.ndarray) -> Unpacked:
    # Qwen-VL: `query, key, value = c_attn(x).split(split_size)`, then `.view(…, num_heads, head_dim)`.
    query, key, value = (part.reshape(HEADS, SIZE, HIDDEN) for part in np.split(weight, 3))
    return query, key, value


def _unpack_wqkv(weight: np.ndarray) -> Unpacked:
    # InternLM2: `rearrange(wqkv(x), "b q (h gs d) -> b q h gs d", gs=2 + num_key_value_groups)`, queries
    # `[..., :num_key_value_groups, :]` rearranged to "(h gs)", key `[..., -2, :]`, value `[..., -1, :]`.
    grouped = weight.reshape(KEY_HEADS, 2 + HEADS // KEY_HEADS, SIZE, HIDDEN)
    return grouped[:, :-2].reshape(HEADS, SIZE, HIDDEN), grouped[:, -2], grouped[:, -1]


def _unpack_stacked(weight: np.ndarray) -> Unpacked:
    # Molmo 2 and Phi: `split((H·d, H_kv·d, H_kv·d))`.
    query, key, value = np.split(weight, [HEADS * SIZE, (HEADS + KEY_HEADS) * SIZE])
    return tuple(part.reshape(-1, SIZE, HIDDEN) for part in (query, key, value))  # type: ignore[return-value]


@dataclass(frozen=True)
class Published:
    """A family in the form of its published checkpoints."""

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
        _unpack_c_attn,
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
        _unpack_wqkv,
        "vision_model.encoder.layers.0.attn.qkv.weight",
        {"model_type": "internvl_chat", "llm_config": {"model_type": "internlm2", **TEXT}},
    ),
    "InternVL2 on Phi-3": Published(
        "language_model.model.layers.{}.self_attn.qkv_proj",
        (HEADS + 2 * KEY_HEADS) * SIZE,
        _unpack_stacked,
        "vision_model.encoder.layers.0.attn.qkv.weight",
        {"model_type": "internvl_chat", "llm_config": {"model_type": "phi3", **TEXT}},
    ),
    "Molmo2": Published(
        "model.transformer.blocks.{}.self_attn.att_proj",
        (HEADS + 2 * KEY_HEADS) * SIZE,
        _unpack_stacked,
        "model.vision_backbone.image_vit.transformer.resblocks.0.attention.wq.weight",
        {"model_type": "molmo2", "text_config": {"model_type": "molmo2_text", "head_dim": SIZE, **TEXT}},
    ),
}


def written(directory: Path, published: Published) -> Path:
    """Write a random checkpoint of the family into a new directory, and return it."""
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
