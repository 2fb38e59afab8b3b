"""Write a stream of edited tensors at their places, and read each back while it is in the page cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

from qkedit.checkpoint.io.file_errors import explained, open_descriptor
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.errors import CheckpointError, QkeditError
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.edited_tensor import EditedTensor, EditedTensors
from qkedit.steering.engine.progress import Progress
from qkedit.steering.engine.reading import piece_size, sha256_of, stands_at, tensor_pieces
from qkedit.steering.outputs.checks import EDGE_BYTES, Edges, not_as_computed
from qkedit.steering.outputs.writer import Written
from qkedit.stopwatch import Stopwatch

# For larger writes Linux takes larger pages, which a virtual machine may have to get from its host first: a tensor of
# 26 MB then took up to 81 ms instead of at most 18 (docs/benchmarks.md).
_WRITTEN_AT_ONCE = 1 << 20


def write_tensors(
    directory: Path,
    edits: EditedTensors,
    places: dict[str, TensorEntry],
    stopwatch: Stopwatch,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
) -> tuple[Written, list[Edges]]:
    """Write each tensor at its place and read it back, while it is in the page cache.

    Args:
        directory: the directory that holds the files.
        edits: the edited tensors.
        places: the place of each tensor, by name.
        stopwatch: measures hashing, writing and checks.
        progress: called as the work advances.
        check: called before each tensor; raises an error that must stop the run.

    Returns:
        The record of what was written, and the tensors' edges.
    """
    files = LocalFiles(directory)
    records: list[EditRecord] = []
    after: dict[str, str] = {}
    edges: list[Edges] = []
    with opened_for_writing(directory, {entry.shard for entry in places.values()}) as descriptors:
        for edited in edits:
            from qkedit.steering.engine.layer_weights import stored_bytes  # the first edit has imported torch

            check()
            name, record = edited.name, edited.record
            entry, content = places[name], stored_bytes(edited.tensor)
            with stopwatch("hashing"):
                after[name] = sha256_of_edit(edited)
            with stopwatch("writing"), explained("write", entry.shard):
                _write_at(descriptors[entry.shard], content, entry.start)
            with stopwatch("checks"):
                if not stands_at(files, entry, content):
                    raise not_as_computed(entry)
            records.append(record)
            edges.append((entry, bytes(content[:EDGE_BYTES]), bytes(content[-EDGE_BYTES:])))
            del edited, content  # while the next one is edited
            progress.layer_done()
            progress.bytes_done(entry.nbytes)
    missing = set(places) - set(after)
    if missing:
        raise QkeditError(f"{len(missing)} planned tensors were not edited", where=min(missing))
    return Written(tuple(records), after), edges


def sha256_of_edit(edited: EditedTensor) -> str:
    """Return the SHA-256 of a tensor after its edit. Raises QkeditError if the edit changed no byte."""
    from qkedit.steering.engine.layer_weights import stored_bytes

    after = sha256(stored_bytes(edited.tensor)).hexdigest()
    if after == edited.record.sha256_before:
        raise QkeditError(
            "the chosen heads have no modes to suppress, so every stored value stays as it was",
            where=f"tensor {edited.name}",
            remedy=f"leave out layer {edited.record.layer} with --layers",
        )
    return after


def copy_tensor(
    source: CheckpointFiles,
    entry: TensorEntry,
    directory: Path,
    place: TensorEntry,
    descriptor: int,
    progress: Progress,
) -> str:
    """Copy one tensor's bytes to another place, read them back, and return their SHA-256.

    Args:
        source: the files to read from.
        entry: the tensor's place in `source`.
        directory: the directory to write to.
        place: the tensor's place in `directory`.
        descriptor: of the file at `place`, open for writing.
        progress: called as the work advances.

    Raises:
        QkeditError: the bytes cannot be read or written, or the disk does not hold them as they were read.
    """
    digest, position = sha256(), place.start
    for piece in tensor_pieces(source, entry, piece_size(source)):
        digest.update(piece)
        with explained("write", place.shard):
            _write_at(descriptor, piece, position)
        position += len(piece)
        progress.bytes_done(len(piece))
    if sha256_of(LocalFiles(directory), place) != digest.hexdigest():
        raise CheckpointError("was not written as it was read", where=f"tensor {entry.name}", remedy="check the disk")
    return digest.hexdigest()


def _write_at(descriptor: int, content: memoryview | bytearray, position: int) -> None:
    """Write bytes at a position of a file. Raises OSError."""
    with memoryview(content) as data:
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done : done + _WRITTEN_AT_ONCE], position + done)


@contextmanager
def opened_for_writing(staging: Path, files: Iterable[str]) -> Iterator[dict[str, int]]:
    """Open existing files of a directory without following links, and yield their descriptors by name."""
    with ExitStack() as stack:
        descriptors = {}
        for file in files:
            descriptors[file] = stack.enter_context(open_descriptor(staging / file, os.O_WRONLY | os.O_NOFOLLOW))
        yield descriptors


def write_file(path: Path, content: bytes) -> None:
    """Write a small file into a staging directory. Raises QkeditError if the system refuses."""
    with explained("write", path):
        path.write_bytes(content)
