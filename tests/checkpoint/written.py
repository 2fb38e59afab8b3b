"""Write small checkpoints by hand, valid and broken ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.io.source import LocalFiles

Shapes = Mapping[str, tuple[int, ...]]


def write_shard(path: Path, shapes: Shapes, dtype: str = "f2") -> None:
    """Write a shard of ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ones(shape, dtype) for name, shape in shapes.items()}, path, {"format": "pt"})


def write_index(directory: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> None:
    """Write an index; `weight_map` may be anything."""
    (directory / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def write_sharded(directory: Path, shards: Mapping[str, Shapes], config: Any = None) -> Path:
    """Write a valid sharded checkpoint: config, index and shards."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({} if config is None else config))
    for file, shapes in shards.items():
        write_shard(directory / file, shapes)
    write_index(directory, {tensor: file for file, shapes in shards.items() for tensor in shapes})
    return directory


def write_single(directory: Path, shapes: Shapes, config: Any = None, dtype: str = "f2") -> Path:
    """Write a valid checkpoint in one file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({} if config is None else config))
    write_shard(directory / "model.safetensors", shapes, dtype)
    return directory


def opened(directory: Path) -> Checkpoint:
    """Open the checkpoint in a directory."""
    return open_checkpoint(LocalFiles(directory))
