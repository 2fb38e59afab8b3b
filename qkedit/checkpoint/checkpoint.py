"""A checkpoint as headers and config tell it (stub: signatures agreed on, bodies to come)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qkedit.checkpoint.header import ShardHeader, TensorEntry
from qkedit.checkpoint.source import CheckpointFiles


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before any tensor data is read."""

    files: CheckpointFiles
    config: dict[str, Any]
    shards: dict[str, ShardHeader]  # by file name, in sorted order
    index: str | None  # name of the *.safetensors.index.json, None for a single file
    side_files: tuple[str, ...]  # copied byte-identical
    stale_files: tuple[str, ...]  # left out: other formats of the unedited weights

    @property
    def tensors(self) -> dict[str, TensorEntry]:
        """Every tensor by its on-disk name."""
        raise NotImplementedError


def open_checkpoint(files: CheckpointFiles) -> Checkpoint:
    """Read and check config, index and headers. Raises CheckpointError."""
    raise NotImplementedError
