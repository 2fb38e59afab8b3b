"""Test the plain data that `qkedit models` prints."""

from __future__ import annotations

import json
from pathlib import Path

from qkedit.checkpoint.architecture.description import describe_stack, known_families
from qkedit.checkpoint.architecture.layers import attention_stack
from tests.checkpoint.written import opened, write_single


def test_gates_norms_and_skipped_layers_are_described(tmp_path: Path) -> None:
    attention = "model.language_model.layers.1.self_attn"
    shapes = {
        "model.visual.blocks.0.attn.qkv.weight": (3, 3),
        "model.language_model.layers.0.linear_attn.in_proj.weight": (3, 3),
        f"{attention}.q_proj.weight": (64, 16),
        f"{attention}.k_proj.weight": (16, 16),
        f"{attention}.q_norm.weight": (8,),
        f"{attention}.k_norm.weight": (8,),
    }
    text = {
        "model_type": "qwen3_5_text",
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    checkpoint = opened(write_single(tmp_path, shapes, {"model_type": "qwen3_5", "text_config": text}))
    described = describe_stack(attention_stack(checkpoint))
    assert json.loads(json.dumps(described)) == described
    assert described == {
        "family": "Qwen3.5",
        "decoder": "Qwen3.5",
        "layer_count": 2,
        "layers": [
            {
                "layer": 1,
                "form": "gated",
                "query_heads": 4,
                "key_heads": 2,
                "group_size": 2,
                "head_size": 8,
                "query": {
                    "tensor": f"{attention}.q_proj.weight",
                    "shard": "model.safetensors",
                    "dtype": "F16",
                    "shape": [64, 16],
                    "rows": [[0, 8], [16, 24], [32, 40], [48, 56]],
                },
                "key": {
                    "tensor": f"{attention}.k_proj.weight",
                    "shard": "model.safetensors",
                    "dtype": "F16",
                    "shape": [16, 16],
                    "rows": [[0, 16]],
                },
                "query_bias": None,
                "key_bias": None,
                "query_norm": {
                    "kind": "one-plus rms",
                    "gain": f"{attention}.q_norm.weight",
                    "shift": None,
                    "across_heads": False,
                },
                "key_norm": {
                    "kind": "one-plus rms",
                    "gain": f"{attention}.k_norm.weight",
                    "shift": None,
                    "across_heads": False,
                },
                "rope": "partial multimodal rotary",
            }
        ],
        "skipped": [{"layer": 0, "reason": "has no self-attention, but linear_attn"}],
        "understood_as": None,
    }


def test_known_families_are_listed_in_alphabetical_order() -> None:
    rows = {row["family"]: row for row in known_families()}
    assert rows["Qwen-VL"]["layouts"] == ["c_attn"]
    assert rows["Gemma 3"]["norm"] == "one-plus rms"
    assert rows["Pixtral"]["vision"] == "pixtral"
    assert list(rows) == sorted(rows, key=str.casefold)
    assert json.loads(json.dumps(known_families())) == known_families()
