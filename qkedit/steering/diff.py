"""Compare two checkpoints tensor by tensor, in pieces of bounded size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.header import TensorEntry
from qkedit.checkpoint.resolve import resolve
from qkedit.checkpoint.source import CheckpointFiles

# Bytes compared at a time: memory does not depend on the largest tensor, and both sides stay in the cache.
_PIECE = 1 << 20


@dataclass(frozen=True)
class TensorDifference:
    """How two tensors of the same name differ; a figure is None where it means nothing.

    That is so where dtype or shape differ, for dtypes that are no floats, and where NaN or infinity is in the way.
    """

    name: str
    what: str  # "changed", "only in A", "only in B", "dtype or shape"
    relative_change: float | None = None  # ‖A − B‖ / ‖A‖
    largest_change: float | None = None  # max |A − B|
    elements_changed: float | None = None  # share of elements whose bytes differ, 0–1


def diff(
    first: str, second: str, *, on_bytes: Callable[[int], None] = lambda length: None
) -> tuple[list[TensorDifference], int]:
    """Compare two checkpoints; returns the tensors that differ, by name, and how many were compared.

    Args:
        first: a directory, a hub id, an alias or `demo`.
        second: likewise.
        on_bytes: told how many bytes were read.
    """
    one, other = (open_checkpoint(resolve(model, None)) for model in (first, second))
    differences = []
    for name in sorted(set(one.tensors) | set(other.tensors)):
        ours, theirs = one.tensors.get(name), other.tensors.get(name)
        if ours is None or theirs is None:
            differences.append(TensorDifference(name, "only in B" if ours is None else "only in A"))
        elif (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            differences.append(TensorDifference(name, "dtype or shape"))
        elif not equal(one.files, ours, other.files, theirs, on_bytes):
            differences.append(_difference(one.files, ours, other.files, theirs))
    return differences, len(set(one.tensors) | set(other.tensors))


def _difference(
    first: CheckpointFiles, one: TensorEntry, second: CheckpointFiles, other: TensorEntry
) -> TensorDifference:
    import torch

    from qkedit.steering.stream import TORCH_DTYPES

    dtype = TORCH_DTYPES.get(one.dtype)
    if dtype is None:
        return TensorDifference(one.name, "changed")
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    squares, change_squares, largest, changed, elements = 0.0, 0.0, 0.0, 0, 0
    for ours, theirs in zip(pieces(first, one), pieces(second, other), strict=True):
        a, b = torch.frombuffer(ours, dtype=dtype), torch.frombuffer(theirs, dtype=dtype)
        change = a.double() - b.double()
        squares += float(a.double().square().sum())
        change_squares += float(change.square().sum())
        largest = max(largest, float(change.abs().max()))
        changed += int((a.view(bits) != b.view(bits)).sum())
        elements += len(a)
    finite = math.isfinite(change_squares)
    return TensorDifference(
        one.name,
        "changed",
        relative_change=(change_squares / squares) ** 0.5 if finite and squares else None,
        largest_change=largest if finite else None,
        elements_changed=changed / elements,
    )


def pieces(files: CheckpointFiles, entry: TensorEntry) -> Iterable[bytearray]:
    """Yield the bytes of a tensor piece by piece; each piece may be overwritten by the next."""
    buffer = bytearray(min(_PIECE, entry.nbytes))
    for start in range(entry.start, entry.end, _PIECE):
        if entry.end - start < len(buffer):
            buffer = bytearray(entry.end - start)
        files.read_into(entry.shard, start, buffer)
        yield buffer


def equal(
    first: CheckpointFiles,
    one: TensorEntry,
    second: CheckpointFiles,
    other: TensorEntry,
    on_bytes: Callable[[int], None],
) -> bool:
    """Whether two tensors of equal length hold the same bytes."""
    for ours, theirs in zip(pieces(first, one), pieces(second, other), strict=True):
        on_bytes(len(ours))
        if ours != theirs:  # as byte arrays: views of them are compared element by element, thirty times slower
            return False
    return True
