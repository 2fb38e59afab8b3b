"""Lay out a new safetensors file before its tensors exist, so that they can be written as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from qkedit.checkpoint.io.header import TensorEntry

_ALIGNMENT = 8


def lay_out(entries: Iterable[TensorEntry], file: str) -> tuple[bytes, dict[str, TensorEntry]]:
    """Return the first bytes of a file that will hold tensors like `entries`, and where each will stand in it.

    The format: the header's length as 8 little-endian bytes, a JSON header padded with spaces, then the tensors one
    after another; offsets in the header count from its end.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position, relative = 0, []
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.nbytes],
        }
        relative.append((entry, position))
        position += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    prefix = len(text).to_bytes(8, "little") + text
    places = {
        entry.name: replace(entry, shard=file, start=len(prefix) + start, end=len(prefix) + start + entry.nbytes)
        for entry, start in relative
    }
    return prefix, places
