"""Check a staged output before it is put in its place; every run does this, without reading the model again.

`qkedit.steering.verify` compares everything, at the price of reading everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.io.header import TensorEntry, read_header
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import CheckpointError

Edges = tuple[TensorEntry, bytes, bytes]
"""A written tensor's place, its first bytes and its last."""

EDGE_BYTES = 4096
# While a disk is being written to, each of many small reads has a high latency.
_READINGS_AT_ONCE = 16


def check_headers(staging: Path, checkpoint: Checkpoint, shards: Iterable[str]) -> None:
    """Check that each of these shards has the size and the header that the plan was made from.

    So no file is put in place that a loader would refuse, whatever became of the base's file meanwhile.

    Raises:
        CheckpointError: a shard differs.
    """
    with ThreadPoolExecutor(_READINGS_AT_ONCE) as threads:
        list(threads.map(partial(_check_header, LocalFiles(staging), checkpoint), shards))


def _check_header(files: LocalFiles, checkpoint: Checkpoint, file: str) -> None:
    planned = checkpoint.shards[file]
    try:
        written = read_header(lambda start, end: files.read(file, start, end), files.size(file), file)
    except CheckpointError as error:
        raise _not_the_base(file) from error
    if written != planned:
        raise _not_the_base(file)


def _not_the_base(file: str) -> CheckpointError:
    return CheckpointError(
        "came out different from the base's",
        where=file,
        remedy="run again when no other program writes to the model; if that does not help, check the disk",
    )


def check_edges(staging: Path, edges: Iterable[Edges]) -> None:
    """Check that no copy ran into an edited tensor: it would have come in over one of its edges.

    Each tensor was compared as a whole when it was written. To read all of them once more would mean reading the disk,
    where the copies have driven them out of memory: that took one to three seconds of a copy of 17 GB.

    Raises:
        CheckpointError: a tensor differs at an edge.
    """
    with ThreadPoolExecutor(_READINGS_AT_ONCE) as threads:
        list(threads.map(partial(_check_edges, LocalFiles(staging)), edges))


def _check_edges(files: LocalFiles, edges: Edges) -> None:
    entry, first, last = edges
    if (
        files.read(entry.shard, entry.start, entry.start + len(first)) != first
        or files.read(entry.shard, entry.end - len(last), entry.end) != last
    ):
        raise not_as_computed(entry)


def not_as_computed(entry: TensorEntry) -> CheckpointError:
    """Return the error for a tensor whose bytes on the disk differ from the computed ones."""
    return CheckpointError("was not written as computed", where=f"tensor {entry.name}", remedy="check the disk")
