"""Hand-written checkpoints of a language model next to a vision tower, and their refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qkedit.checkpoint.architecture.layers import attention_layers
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.errors import CheckpointError, UnsupportedForm
from tests.checkpoint.written import opened, write_single

CONFIG = {
    "model_type": "some_new_model",
    "text_config": {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
VISION = {"vision_tower.layers.0.self_attn.q_proj.weight": (8, 8)}


def projections(layer: str, query: int = 32, key: int = 16, hidden: int = 32) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer}.self_attn.q_proj.weight": (query, hidden),
        f"{layer}.self_attn.k_proj.weight": (key, hidden),
        f"{layer}.self_attn.v_proj.weight": (key, hidden),
        f"{layer}.mlp.up_proj.weight": (4, hidden),
    }


def written(directory: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "f2", **text: Any) -> Checkpoint:
    """Return a checkpoint of `shapes` and a vision tower; its config counts their layers."""
    layers = {int(number) for name in shapes for number in re.findall(r"layers\.(\d+)\.", name)}
    settings = {**CONFIG["text_config"], "num_hidden_layers": max(layers, default=0) + 1, **text}  # type: ignore[dict-item]
    return opened(write_single(directory, {**VISION, **shapes}, {**CONFIG, "text_config": settings}, dtype))


def refusal(checkpoint: Checkpoint, kind: type[CheckpointError] = UnsupportedForm) -> str:
    with pytest.raises(kind) as caught:
        attention_layers(checkpoint)
    assert caught.value.remedy, "every error has a remedy"
    return str(caught.value)
