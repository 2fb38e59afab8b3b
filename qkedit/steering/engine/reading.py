"""Read the layers of a plan as bytes, while torch, whose import takes a second, is being imported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qkedit.checkpoint.io.header import TensorEntry, read_header
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.errors import CheckpointError
from qkedit.steering.plan import PlannedLayer, SteerPlan
from qkedit.stopwatch import Stopwatch

# The number of bytes compared at a time, so that memory does not depend on the largest tensor and the bytes stay in
# the CPU cache.
_PIECE = 1 << 20
# On the hub each piece is a request, whose first byte takes some hundredths of a second to arrive.
_REQUESTED = 32 << 20


@dataclass(frozen=True)
class StoredLayer:
    """The stored tensors that the edit of one planned layer needs.

    Attributes:
        planned: the layer.
        contents: the bytes of each tensor by its name; a tensor that holds several projections occurs once.
        sha256_before: the SHA-256 of the tensor that holds the queries.
    """

    planned: PlannedLayer
    contents: dict[str, bytearray]
    sha256_before: str


def read_bytes(files: CheckpointFiles, entry: TensorEntry) -> bytearray:
    """Read one tensor by its byte range; the file is not mapped, so that memory holds only the tensors in use."""
    buffer = bytearray(entry.nbytes)
    files.read_into(entry.shard, entry.start, buffer)
    return buffer


def piece_size(*sources: CheckpointFiles) -> int:
    """Return the number of bytes to read at once from files that are read in parallel."""
    return _PIECE if all(isinstance(files, LocalFiles) for files in sources) else _REQUESTED


def pieces(files: CheckpointFiles, file: str, start: int, end: int, size: int) -> Iterator[bytearray]:
    """Yield bytes [start, end) of a file in pieces of `size`, all in the same memory.

    Each piece is overwritten by the next one, and the last one is cut to its length. So a piece must not be used any
    more, not even through a memoryview or a tensor, once the next one is requested.
    """
    # The first touch of fresh memory takes longer than reading into memory that was touched before.
    buffer = bytearray(min(size, end - start))
    for position in range(start, end, size):
        del buffer[end - position :]
        files.read_into(file, position, buffer)
        yield buffer


def tensor_pieces(files: CheckpointFiles, entry: TensorEntry, size: int) -> Iterator[bytearray]:
    """Yield the bytes of one tensor as `pieces` does."""
    return pieces(files, entry.shard, entry.start, entry.end, size)


def same_bytes(
    ours: Iterable[bytearray],
    theirs: Iterable[bytearray],
    on_bytes: Callable[[int], None] = lambda length: None,
) -> bool:
    """Return whether two streams of pieces hold the same bytes.

    Args:
        ours: the pieces of one side.
        theirs: the same number of pieces, of the same lengths.
        on_bytes: called with the number of bytes compared on either side.
    """
    for one, other in zip(ours, theirs, strict=True):
        on_bytes(len(one))
        if one != other:  # as byte arrays: views of them are compared element by element, thirty times slower
            return False
    return True


def tensors_of(files: CheckpointFiles, file: str) -> dict[str, TensorEntry]:
    """Return the tensors of one file, such as that of a delta or of an adapter, by name.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    size = files.sizes().get(file)
    if size is None:
        raise CheckpointError(
            f"there is no {file}", where=files.name, remedy="name a directory written with --layout delta or lora"
        )
    return read_header(lambda start, end: files.read(file, start, end), size, file).tensors


def whole_file(file: str, sizes: Mapping[str, int]) -> TensorEntry:
    """Return an entry for a whole file, as if it were one tensor with the file's name."""
    return TensorEntry(file, file, "U8", (sizes[file],), 0, sizes[file])


def sha256_of(
    files: CheckpointFiles, entry: TensorEntry, on_bytes: Callable[[int], None] = lambda length: None
) -> str:
    """Return the SHA-256 of one tensor's bytes; `on_bytes` is called with the number of bytes read."""
    digest = hashlib.sha256()
    for piece in tensor_pieces(files, entry, piece_size(files)):
        digest.update(piece)
        on_bytes(len(piece))
    return digest.hexdigest()


def stands_at(files: CheckpointFiles, entry: TensorEntry, content: memoryview) -> bool:
    """Return whether the bytes at `entry` are exactly `content`."""
    if len(content) != entry.nbytes:
        return False
    position = 0
    for piece in tensor_pieces(files, entry, piece_size(files)):
        if piece != content[position : position + len(piece)]:
            return False
        position += len(piece)
    return True


def stored_layers(plan: SteerPlan, stopwatch: Stopwatch | None = None) -> Iterator[StoredLayer]:
    """Yield the planned layers in their order. Raises CheckpointError when bytes cannot be read."""
    stopwatch = stopwatch or Stopwatch()
    for planned in plan.layers:
        yield _read_layer(plan.checkpoint.files, planned, stopwatch)  # unnamed, so that it is freed in time


def _read_layer(files: CheckpointFiles, planned: PlannedLayer, stopwatch: Stopwatch) -> StoredLayer:
    with stopwatch("reading"):
        contents = {entry.name: read_bytes(files, entry) for entry in planned.needed_tensors}
    with stopwatch("hashing"):
        digest = hashlib.sha256(contents[planned.layer.query.tensor.name]).hexdigest()
    return StoredLayer(planned, contents, digest)
