"""Write a new safetensors file tensor by tensor, with at most one of them in memory.

The format: the header's length as 8 little-endian bytes, a JSON header padded with spaces, then the tensors in a row;
offsets in the header count from its end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from qkedit.checkpoint.io.file_errors import explained, open_descriptor
from qkedit.checkpoint.io.header import LENGTH_BYTES, TensorEntry

_ALIGNMENT = 8
# The maximum length of two dimensions and two offsets, with a dtype and the keys.
_LONGEST_ENTRY = 160


def lay_out(entries: Iterable[TensorEntry], file: str) -> tuple[bytes, dict[str, TensorEntry]]:
    """Return the header bytes of a file with tensors like `entries`, and the entry of each in that file."""
    position, relative = 0, {}
    for entry in entries:
        relative[entry.name] = replace(entry, shard=file, start=position, end=position + entry.nbytes)
        position += entry.nbytes
    text = _header_text(relative.values())
    text += b" " * (-len(text) % _ALIGNMENT)
    return _with_length(text), {name: _moved(entry, LENGTH_BYTES + len(text)) for name, entry in relative.items()}


class GrowingTensorFile:
    """A safetensors file whose tensor shapes are unknown when it is begun; see `growing`."""

    def __init__(self, descriptor: int, file: str, header_bytes: int) -> None:
        self._descriptor, self._file, self._header_bytes = descriptor, file, header_bytes
        self._entries: list[TensorEntry] = []
        self._end = 0

    def append(self, name: str, dtype: str, shape: tuple[int, ...], content: memoryview) -> TensorEntry:
        """Append a tensor and return its entry. Raises QkeditError if the system refuses."""
        entry = TensorEntry(name, self._file, dtype, shape, self._end, self._end + len(content))
        with explained("write", self._file):
            self._write(content, LENGTH_BYTES + self._header_bytes + self._end)
        self._entries.append(entry)
        self._end = entry.end
        return _moved(entry, LENGTH_BYTES + self._header_bytes)

    def finish(self) -> None:
        """Write the header, without which the file is not a safetensors file."""
        text = _header_text(self._entries)
        with explained("write", self._file):
            self._write(memoryview(_with_length(text + b" " * (self._header_bytes - len(text)))), 0)

    def _write(self, content: memoryview, position: int) -> None:
        while content:
            written = os.pwrite(self._descriptor, content, position)
            content, position = content[written:], position + written


@contextmanager
def growing(directory: Path, file: str, names: Iterable[str]) -> Iterator[GrowingTensorFile]:
    """Begin a file of tensors `names` with at most two dimensions; the header is written at the end.

    Raises:
        QkeditError: the system refuses.
    """
    room = len(_header_text([])) + sum(_LONGEST_ENTRY + len(json.dumps(name)) for name in names)
    room += -room % _ALIGNMENT
    with open_descriptor(directory / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) as descriptor:
        tensors = GrowingTensorFile(descriptor, file, room)
        yield tensors
        tensors.finish()


def _header_text(entries: Iterable[TensorEntry]) -> bytes:
    """Return the JSON of a header for entries whose offsets count from its end."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.end],
        }
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def _with_length(text: bytes) -> bytes:
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _moved(entry: TensorEntry, by: int) -> TensorEntry:
    return replace(entry, start=entry.start + by, end=entry.end + by)
