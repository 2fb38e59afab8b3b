"""What can be asked of an edit, and what an edit says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qkedit.spectral.spectrum import modes_for_energy
from qkedit.spectral.update import QueryUpdate

Channel = Literal["full", "symmetric", "antisymmetric"]
Control = Literal["none", "index", "norm"]


@dataclass(frozen=True)
class Suppression:
    """What to suppress.

    Attributes:
        k: how many dominant modes a head (planes in the antisymmetric channel); ignored when `energy` is given.
        energy: take as many modes as carry this share of the energy, in (0, 1].
        residual: ρ, the share of each suppressed mode that stays, in [0, 1).
        channel: the product itself, its symmetric part or its antisymmetric part.
        control: `index` suppresses as many randomly drawn other modes instead, `norm` a random frame that
            changes the product equally much; both for the full channel.
        seed: of the controls' draws.
    """

    k: int = 4
    energy: float | None = None
    residual: float = 0.0
    channel: Channel = "full"
    control: Control = "none"
    seed: int = 0


@dataclass(frozen=True)
class QueryEdit:
    """An edit of every head of a product and what there is to say about it; all `[H, …]`, float64.

    `suppressed` holds the singular values (channels: |λ|) of the modes acted on, padded with zeros beyond
    `counts`. `gap` is NaN where it means nothing. `residual` and `leak` exist for channel edits, `scale` for
    the norm-matched control.
    """

    update: QueryUpdate
    counts: Tensor  # [H] modes acted on
    suppressed: Tensor  # [H, m]
    energy_removed: Tensor  # [H] share of the channel's energy
    gap: Tensor  # [H] σ_k / σ_{k+1}
    residual: Tensor | None = None  # [H]
    leak: Tensor | None = None  # [H]
    scale: Tensor | None = None  # [H]


def mode_counts(values: Tensor, ranks: Tensor, suppression: Suppression) -> Tensor:
    """Return how many modes of each head to take, `[H]`: k or enough for the energy, never more than its rank."""
    if suppression.energy is None:
        wanted = torch.full_like(ranks, suppression.k)
    else:
        wanted = modes_for_energy(values, suppression.energy)
    return torch.minimum(wanted, ranks)
