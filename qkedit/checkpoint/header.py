"""Read safetensors headers without trusting them (stub: signatures agreed on, body to come)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as its shard's header describes it; offsets are absolute in the file."""

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
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(read: Callable[[int, int], bytes], size: int, file: str) -> ShardHeader:
    """Parse and check the header of one shard. `read(start, end)` returns exactly those bytes."""
    raise NotImplementedError
