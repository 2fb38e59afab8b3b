"""Read the layers of a plan as bytes: torch, which takes a second to import, is imported meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from qkedit.checkpoint.header import TensorEntry
from qkedit.checkpoint.source import CheckpointFiles
from qkedit.steering.plan import PlannedLayer, SteerPlan
from qkedit.steering.stopwatch import Stopwatch

# Bytes to compare at once; they stay in a processor's cache meanwhile.
_PIECE = 1 << 20


@dataclass(frozen=True)
class StoredLayer:
    """What the mathematics of one planned layer needs, as it is stored.

    Attributes:
        planned: the layer.
        contents: each tensor's bytes by its name; a tensor that holds several projections stands there once.
        sha256_before: of the tensor that holds the queries.
    """

    planned: PlannedLayer
    contents: dict[str, bytearray]
    sha256_before: str


def read_bytes(files: CheckpointFiles, entry: TensorEntry) -> bytearray:
    """Read one tensor by its byte range: no mapping of the file, so that memory holds what is worked on."""
    buffer = bytearray(entry.nbytes)
    files.read_into(entry.shard, entry.start, buffer)
    return buffer


def stands_at(files: CheckpointFiles, entry: TensorEntry, content: memoryview) -> bool:
    """Whether exactly the bytes `content` stand at `entry`."""
    if len(content) != entry.nbytes:
        return False
    # All pieces in the same memory: to touch fresh memory takes longer than to read.
    buffer = bytearray(_PIECE)
    for start in range(0, entry.nbytes, _PIECE):
        del buffer[entry.nbytes - start :]
        files.read_into(entry.shard, entry.start + start, buffer)
        if buffer != content[start : start + _PIECE]:
            return False
    return True


def stored_layers(plan: SteerPlan, stopwatch: Stopwatch | None = None) -> Iterator[StoredLayer]:
    """Yield the planned layers in their order. Raises CheckpointError when bytes cannot be read."""
    stopwatch = stopwatch or Stopwatch()
    for planned in plan.layers:
        yield _read_layer(plan.checkpoint.files, planned, stopwatch)  # no name holds it while the next one is read


def _read_layer(files: CheckpointFiles, planned: PlannedLayer, stopwatch: Stopwatch) -> StoredLayer:
    with stopwatch("reading"):
        contents = {entry.name: read_bytes(files, entry) for entry in planned.needed_tensors}
    with stopwatch("hashing"):
        digest = hashlib.sha256(contents[planned.layer.query.tensor.name]).hexdigest()
    return StoredLayer(planned, contents, digest)
