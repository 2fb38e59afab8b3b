"""What happened to an edited tensor, head by head. Free of torch: manifests are read and written without it."""

from __future__ import annotations

from dataclasses import dataclass

from qkedit.checkpoint.io.header import TensorEntry


@dataclass(frozen=True)
class HeadEdit:
    """What happened to one query head. Shares are 0–1; `None` where a figure has no meaning."""

    head: int
    key_head: int
    suppressed: tuple[float, ...]  # σ (channels: |λ|; norm control: direction strengths) of the modes acted on
    energy_removed: float  # of the channel's energy, requested
    gap: float | None  # σ_k / σ_{k+1} at the cut
    relative_change: float  # ‖W_q' − W_q‖ / ‖W_q‖ after rounding to the storage dtype
    unrealized_share: float | None = None  # channels: share of the wanted change that queries cannot write
    leak: float | None = None  # channels: share of the wish that lands in the other channel
    scale: float | None = None  # norm control: c
    key_bias_effect: float | None = None  # ‖(W_q' − W_q)ᵀ b_k‖


@dataclass(frozen=True)
class EditRecord:
    """What happened to one query tensor."""

    layer: int
    form: str  # how its heads stand in the tensor
    norm: str | None  # kind of norm behind the queries, folded into the product
    tensor: TensorEntry
    sha256_before: str
    heads: tuple[HeadEdit, ...]
