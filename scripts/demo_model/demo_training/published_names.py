"""Rename tensors from the module names that transformers 5 writes to those of the published LLaVA checkpoints.

Engines such as vLLM read only the published names.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"


def published_name(name: str) -> str:
    """Return the published name of a tensor."""
    inner = name.removeprefix("vision_tower.")
    return name if inner == name or inner.startswith("vision_model.") else f"vision_tower.vision_model.{inner}"


def rename_tensors(checkpoint: Path) -> None:
    """Rename the tensors of a sharded checkpoint with an index, in place, without changing values."""
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {published_name(name): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        save_file(tensors, shard, metadata)
    index = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))
    renamed = {published_name(name): shard for name, shard in index["weight_map"].items()}
    index["weight_map"] = dict(sorted(renamed.items()))
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (checkpoint / INDEX).write_text(text, encoding="utf-8", newline="\n")
