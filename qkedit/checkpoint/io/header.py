"""Read the header of a safetensors file without trusting it.

A safetensors file is an 8-byte little-endian header length, a JSON header of that length, then packed data:

    {"__metadata__": {"format": "pt"}, "name": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}}

Offsets count from the end of the header. A file is valid if its tensors tile the buffer: each range is as long as
dtype and shape require, none overlaps another, there are no gaps, and the last one ends where the file ends. Byte
ranges of a checked header may be read and overwritten without further checks, so everything is checked here, once,
before it is used. A fault is a CheckpointError that names the file and the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from qkedit.errors import CheckpointError, first_sentence
from qkedit.strict_text import parse_json

LENGTH_BYTES = 8
# The limit of the safetensors library: no loader reads longer headers.
MAX_HEADER_BYTES = 100_000_000
MAX_INTEGER = 2**64 - 1  # the largest size or offset
METADATA_KEY = "__metadata__"
_ENTRY = ("dtype", "shape", "data_offsets")
# No tensor library supports more (numpy's limit; torch's is the same).
MAX_DIMENSIONS = 64

DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# The number of characters of a value or name that a message shows.
_SHOWN = 300

DOWNLOAD_AGAIN = "download or save the file again"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor according to its shard's header; offsets are absolute in the file."""

    name: str
    shard: str  # file name relative to the checkpoint directory, with "/" separators
    dtype: str  # safetensors' name: "BF16", "F16", "F32" …
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class ShardHeader:
    """The header of one safetensors file."""

    file: str
    size: int  # bytes of the whole file
    data_start: int  # 8 + header length
    tensors: dict[str, TensorEntry]  # in the order of the header
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(read: Callable[[int, int], bytes], size: int, file: str) -> ShardHeader:
    """Parse and check the header of one shard.

    Args:
        read: `read(start, end)` returns exactly those bytes of the file.
        size: length of the whole file in bytes.
        file: the shard's name, for the entries and the errors.

    Raises:
        CheckpointError: the file is not a valid safetensors file; the message names the fault and the tensor.
    """
    if size < LENGTH_BYTES:
        raise _broken(file, f"the file has {size} bytes, too few for a safetensors header")
    length = int.from_bytes(_read_exactly(read, 0, LENGTH_BYTES, file), "little")
    if length > MAX_HEADER_BYTES:
        raise _broken(file, f"the header claims {length} bytes, more than safetensors' limit of {MAX_HEADER_BYTES}")
    data_start = LENGTH_BYTES + length
    if data_start > size:
        raise _broken(file, f"the header claims {length} bytes, but the file has only {size}")
    fields = _parse_json(_read_exactly(read, LENGTH_BYTES, data_start, file), file)
    metadata = _checked_metadata(fields.pop(METADATA_KEY, None), file)
    tensors = {name: _checked_entry(name, value, data_start, file) for name, value in fields.items()}
    _check_tiling(tensors.values(), data_start, size, file)
    return ShardHeader(file=file, size=size, data_start=data_start, tensors=tensors, metadata=metadata)


def parse_json_object(text: bytes, file: str) -> dict[str, Any]:
    """Parse a JSON object as strictly as `parse_json` does. Raises CheckpointError."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise _broken(file, f"is not valid JSON ({first_sentence(error)})") from error
    if not isinstance(value, dict):
        raise _broken(file, f"holds a JSON {type(value).__name__} where an object is expected")
    return value


def _parse_json(text: bytes, file: str) -> dict[str, Any]:
    # The format demands that the header begins with "{"; trailing spaces pad it for alignment.
    if not text.startswith(b"{"):
        raise _broken(file, "the safetensors header does not begin with '{'")
    return parse_json_object(text, file)


def _checked_metadata(value: Any, file: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _broken(file, f"{METADATA_KEY} is not a map of strings")
    return value


def _checked_entry(name: str, value: Any, data_start: int, file: str) -> TensorEntry:
    where = _where(file, name)
    if not isinstance(value, dict):
        raise _broken(where, "the header entry is not an object")
    for key in _ENTRY:
        if key not in value:
            raise _broken(where, f"the header entry has no {key!r}")
    for key, more in value.items():
        # The format does not have this key. Loaders ignore it, but their parsers limit its depth.
        if key not in _ENTRY and isinstance(more, dict | list):
            raise _broken(where, f"the header entry has a nested value under the foreign key {key[:100]!a}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _broken(where, f"unknown dtype {_short(dtype)}")
    if not isinstance(shape, list) or not all(_is_count(dimension) for dimension in shape):
        raise _broken(where, f"the shape {_short(shape)} is not a list of sizes")
    if len(shape) > MAX_DIMENSIONS:
        raise _broken(where, f"the shape has {len(shape)} dimensions, more than the limit of {MAX_DIMENSIONS}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise _broken(where, f"data_offsets {_short(offsets)} is not a pair of positions")
    start, end = offsets
    bits = DTYPE_BITS[dtype]
    for dimension in shape:
        bits *= dimension
    if bits != 8 * (end - start):
        taken = f"{bits // 8}" + (f".{bits % 8 * 125:03}".rstrip("0") if bits % 8 else "")
        raise _broken(where, f"data_offsets cover {end - start} bytes, but {dtype} of shape {shape} takes {taken}")
    return TensorEntry(name, file, dtype, tuple(shape), data_start + start, data_start + end)


def _check_tiling(entries: Iterable[TensorEntry], data_start: int, size: int, file: str) -> None:
    """Check that the entries cover [data_start, size) without overlaps and gaps."""
    position, previous = data_start, None
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start < position:
            raise _broken(_where(file, entry.name), f"its bytes overlap those of {_short(previous)}")
        if entry.start > position:
            raise _broken(_where(file, entry.name), f"{entry.start - position} bytes before it belong to no tensor")
        position, previous = entry.end, entry.name
    if position > size:
        raise _broken(_where(file, previous or ""), f"its bytes end at {position}, but the file has only {size}")
    if position < size:
        raise _broken(file, f"the last {size - position} bytes belong to no tensor")


def _read_exactly(read: Callable[[int, int], bytes], start: int, end: int, file: str) -> bytes:
    data = read(start, end)
    if len(data) != end - start:
        raise _broken(file, f"only {len(data)} of {end - start} header bytes could be read")
    return data


def _is_count(value: Any) -> bool:
    # `type` and not isinstance: JSON true is an int to Python.
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _short(value: Any) -> str:
    """Return a value from a file in ASCII, truncated: it may have a hundred megabytes."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _where(file: str, tensor: str) -> str:
    return f"{file}, tensor {tensor if len(tensor) <= _SHOWN else tensor[:_SHOWN] + '…'}"


def _broken(where: str, what: str) -> CheckpointError:
    return CheckpointError(what, where=where, remedy=DOWNLOAD_AGAIN)
