"""Which rows of which tensor are query head h and key head g (stub: signatures agreed on, bodies to come)."""

from __future__ import annotations

from dataclasses import dataclass

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.header import TensorEntry


@dataclass(frozen=True)
class HeadRows:
    """Where the heads of one projection stand in its tensor: head i is rows [starts[i], starts[i] + head_size)."""

    tensor: TensorEntry
    starts: tuple[int, ...]
    head_size: int


@dataclass(frozen=True)
class AttentionLayer:
    """One self-attention layer of the language model; query head h reads key head h // group_size."""

    index: int
    form: str  # "separate" …
    query: HeadRows
    key: HeadRows
    query_bias: HeadRows | None = None
    key_bias: HeadRows | None = None

    @property
    def query_heads(self) -> int:
        """H."""
        return len(self.query.starts)

    @property
    def key_heads(self) -> int:
        """H_kv."""
        return len(self.key.starts)

    @property
    def group_size(self) -> int:
        """H / H_kv."""
        return self.query_heads // self.key_heads


def attention_layers(checkpoint: Checkpoint) -> tuple[AttentionLayer, ...]:
    """Every text self-attention layer, by index. Raises UnsupportedForm with the reason."""
    raise NotImplementedError
