"""Compare two checkpoints tensor by tensor, in pieces of bounded size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.checkpoint.resolve import resolve
from qkedit.steering.engine.reading import piece_size, same_bytes, tensor_pieces

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorDifference:
    """The difference of two tensors of the same name; a figure is None where it has no meaning.

    So it is None where dtype or shape differ, for dtypes that are not floating-point, and where NaN, infinity or a
    number beyond float64 occurs.
    """

    name: str
    what: str  # "changed", "only in A", "only in B", "dtype or shape"
    relative_change: float | None = None  # ‖A − B‖ / ‖A‖
    largest_change: float | None = None  # max |A − B|
    elements_changed: float | None = None  # share of elements whose bytes differ, 0–1


def diff(
    first: str, second: str, *, on_bytes: Callable[[int], None] = lambda length: None
) -> tuple[list[TensorDifference], int]:
    """Compare two checkpoints, and return the tensors that differ, by name, and the number of compared tensors.

    Args:
        first: a directory, a hub id, an alias or `demo`.
        second: likewise.
        on_bytes: called with the number of bytes read.
    """
    one, other = (open_checkpoint(resolve(model, None)) for model in (first, second))
    return differing_tensors(one, other, on_bytes)


def differing_tensors(
    one: Checkpoint, other: Checkpoint, on_bytes: Callable[[int], None] = lambda length: None
) -> tuple[list[TensorDifference], int]:
    """Return the tensors in which two checkpoints differ, by name, and the number of compared tensors."""
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
    from qkedit.steering.engine.layer_weights import TORCH_DTYPES

    dtype = TORCH_DTYPES.get(one.dtype)
    if dtype is None:
        return TensorDifference(one.name, "changed")
    size = piece_size(first, second)
    pieces = zip(tensor_pieces(first, one, size), tensor_pieces(second, other, size), strict=True)
    return tensor_difference(one.name, pieces, dtype)


def tensor_difference(
    name: str, pieces: Iterable[tuple[bytearray | memoryview, bytearray | memoryview]], dtype: torch.dtype
) -> TensorDifference:
    """Return the difference of two tensors of the same dtype and shape, from pieces of their bytes."""
    squares, change_squares, largest, changed, elements = 0.0, 0.0, 0.0, 0, 0
    for ours, theirs in pieces:
        figures = _figures(ours, theirs, dtype)
        squares += figures.squares
        change_squares += figures.change_squares
        largest = max(largest, figures.largest)
        changed += figures.changed
        elements += len(ours) // dtype.itemsize
    finite = math.isfinite(change_squares)
    # A ratio of norms, since a ratio of their squares overflows float64 much sooner.
    relative = math.sqrt(change_squares) / math.sqrt(squares) if finite and 0 < squares < math.inf else math.inf
    return TensorDifference(
        name,
        "changed",
        relative_change=relative if math.isfinite(relative) else None,
        largest_change=largest if finite else None,
        elements_changed=changed / elements,
    )


class _Figures(NamedTuple):
    """The figures of one piece."""

    squares: float
    change_squares: float
    largest: float
    changed: int


def _figures(ours: bytearray | memoryview, theirs: bytearray | memoryview, dtype: torch.dtype) -> _Figures:
    """Compare two pieces; the tensors that share their memory are freed on return, as `pieces` requires."""
    import torch

    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    a, b = torch.frombuffer(ours, dtype=dtype), torch.frombuffer(theirs, dtype=dtype)
    change = a.double() - b.double()
    return _Figures(
        squares=float(a.double().square().sum()),
        change_squares=float(change.square().sum()),
        largest=float(change.abs().max()),
        changed=int((a.view(bits) != b.view(bits)).sum()),
    )


def equal(
    first: CheckpointFiles,
    one: TensorEntry,
    second: CheckpointFiles,
    other: TensorEntry,
    on_bytes: Callable[[int], None],
) -> bool:
    """Return whether two tensors of equal length hold the same bytes."""
    size = piece_size(first, second)
    return same_bytes(tensor_pieces(first, one, size), tensor_pieces(second, other, size), on_bytes)
