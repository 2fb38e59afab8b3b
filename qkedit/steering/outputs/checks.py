"""Check a staged output before it is moved to its place; every run does this, without reading the model again.

`qkedit.steering.verify` compares everything, but has to read everything.
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
"""The place of a written tensor, its first bytes and its last bytes."""

EDGE_BYTES = 4096
# While a disk is being written, each small read has a high latency.
_READINGS_AT_ONCE = 16


def check_headers(staging: Path, checkpoint: Checkpoint, shards: Iterable[str]) -> None:
    """Check that each of these shards has the size and the header that the plan was made from.

    So the output never holds a file that a loader would refuse, even if the base's file was changed meanwhile.

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
    """Check that no copy overwrote a part of an edited tensor: it would have crossed one of the tensor's edges.

    Each tensor was compared as a whole when it was written. To read all of them again would mean reading the disk,
    since the copies have pushed them out of the page cache: that took one to three seconds of a copy of 17 GB.

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
    """Return the error for a tensor whose bytes on the disk are not the computed ones."""
    return CheckpointError("was not written as computed", where=f"tensor {entry.name}", remedy="check the disk")
