"""Build tiny checkpoints of every family, and load transformers' models of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from qkedit.checkpoint.architecture.heads import AttentionStack
from qkedit.checkpoint.architecture.layers import attention_stack
from tests import tiny_configs, tiny_models
from tests.checkpoint.written import opened

# Checkpoints with published names, also with the names of transformers' modules if these differ, and language models.
VARIANTS = [
    *((family, True) for family in tiny_configs.FAMILIES),
    *((family, False) for family in tiny_configs.RENAMED),
    *((family, True) for family in tiny_configs.TEXT_MODELS),
]
IDS = [family if published else f"{family}, module names" for family, published in VARIANTS]


@dataclass(frozen=True)
class Built:
    """A tiny checkpoint and transformers' model of it."""

    directory: Path
    model: Any


Build = Callable[[str, bool], Built]


def understood(directory: Path) -> AttentionStack:
    return attention_stack(opened(directory), allow_text_only=True)


def stored_tensors(directory: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "np") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 – no mapping
    return tensors


def loaded(family: str, directory: Path) -> Any:
    model, report = tiny_models.model_class(family).from_pretrained(
        directory, dtype="float32", output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()
