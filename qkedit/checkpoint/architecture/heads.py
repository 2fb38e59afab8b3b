"""The language model of a checkpoint for an edit: its layers, their heads, and the rows of each head."""

from __future__ import annotations

from dataclasses import dataclass

from qkedit.checkpoint.architecture.schema import NormKind, Rotation
from qkedit.checkpoint.io.header import TensorEntry


@dataclass(frozen=True)
class HeadRows:
    """The rows of the heads in one projection: head i is rows [starts[i], starts[i] + head_size).

    The tensor of norm gains may have any shape; its "rows" are then its elements in storage order.
    """

    tensor: TensorEntry
    starts: tuple[int, ...]
    head_size: int


@dataclass(frozen=True)
class HeadNorm:
    """The norm between a projection and the logit; its gains are part of the query-key product.

    With y one head of the projection (d_h numbers), n its normaliser, g the gains and s the shift:

        "rms"           y ↦ g ∘ y / n,                     n = root mean square of y
        "one-plus rms"  y ↦ (1 + g) ∘ y / n
        "layer norm"    y ↦ g ∘ (y − mean y) / n + s,      n = standard deviation of y
        "l2"            y ↦ y / n                          no gains
    """

    kind: NormKind
    gain: HeadRows | None = None
    shift: HeadRows | None = None
    across_heads: bool = False  # n is computed over all heads together, so an edit of one head rescales the others

    @property
    def name(self) -> str:
        """The name in reports: the kind, and whether n is computed over all heads."""
        return f"{self.kind} over all heads" if self.across_heads else self.kind.value


@dataclass(frozen=True)
class InputGain:
    """The gain g of the norm before the projections, `[D]`: g, or 1 + g for `NormKind.ONE_PLUS_RMS`."""

    kind: NormKind
    tensor: TensorEntry


@dataclass(frozen=True)
class AttentionLayer:
    """One self-attention layer of the language model; query head h reads key head h // group_size."""

    index: int
    form: str  # name of the layout: "separate" …
    query: HeadRows
    key: HeadRows
    query_bias: HeadRows | None = None
    key_bias: HeadRows | None = None
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None
    input_gain: InputGain | None = None  # None where no record names the norm
    rope: Rotation = Rotation.UNKNOWN

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

    @property
    def norm_kind(self) -> str | None:
        """Name of the norm between the queries and the logit, None without one."""
        return None if self.query_norm is None else self.query_norm.name

    @property
    def head_size(self) -> int:
        """d_h."""
        return self.query.head_size


@dataclass(frozen=True)
class SkippedLayer:
    """A layer of the language model without a query-key product to edit, and the reason."""

    index: int
    reason: str


@dataclass(frozen=True)
class AttentionStack:
    """The language model of a checkpoint, layer by layer."""

    family: str  # name of the family's record, "unknown" without one
    decoder: str  # name of the language model's record, "unknown" without one
    layer_count: int  # all layers, with and without attention
    layers: tuple[AttentionLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    understood_as: str | None = None  # a sentence for reports if none of our own records names the model
