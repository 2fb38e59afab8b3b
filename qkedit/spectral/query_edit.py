"""The result of an edit, and the number of modes to suppress in each head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qkedit.spectral.mode_selection import modes_for_energy
from qkedit.spectral.suppression import Suppression
from qkedit.spectral.update import QueryUpdate


@dataclass(frozen=True)
class QueryEdit:
    """An edit of every head of a product with its figures; all `[H, …]`, float64.

    `suppressed` holds the singular values (channels: |λ|) of the suppressed modes, padded with zeros beyond `counts`.
    `gap` is NaN where no mode is cut or none remains. `unrealized_share` and `leak` exist for channel edits, `scale`
    for the norm-matched control.
    """

    update: QueryUpdate
    counts: Tensor  # [H] suppressed modes
    suppressed: Tensor  # [H, m]
    energy_removed: Tensor  # [H] share of the channel's energy
    gap: Tensor  # [H] σ_k / σ_{k+1}
    unrealized_share: Tensor | None = None  # [H]
    leak: Tensor | None = None  # [H]
    scale: Tensor | None = None  # [H]


def mode_counts(values: Tensor, ranks: Tensor, suppression: Suppression) -> Tensor:
    """Return the number of modes to take of each head, `[H]`: k, or enough for the energy, at most its rank."""
    if suppression.energy is None:
        wanted = torch.full_like(ranks, min(suppression.k, values.shape[-1]))
    else:
        wanted = modes_for_energy(values, suppression.energy)
    return torch.minimum(wanted, ranks)
