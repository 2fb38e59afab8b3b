"""Edits that leave some directions of the queries alone, such as those by which queries find the attention sink.

A key that is fixed but for its rotation, such as the first token's, gives each query head the logits `x_iᵀ t_n` with
`t_n = W_qᵀ R_nᵀ k` at distance n. Let the columns of `B` be the r principal directions of all `t_n`. The product
restricted to queries orthogonal to them is

    M̃ = (I − BBᵀ) M = W̃_qᵀ W_k,        W̃_q = W_q (I − BBᵀ),

and its left singular vectors U are orthogonal to B. So an edit that suppresses the modes of M̃ is an edit of M that
leaves the logits of every direction in B as they were:

    W_q' = W_q (I − (1−ρ) U_k U_kᵀ) = W_q − (1−ρ) W̃_q U_k U_kᵀ,        W_q' B = W_q B.

(Which directions to protect, and that modes are taken from M̃, are our choices.) With `W_q = L_q Q_qᵀ`, `S = Σ_n
(R_nᵀ k)(R_nᵀ k)ᵀ` and the eigenvectors B̂ of `L_qᵀ S L_q` for its r largest eigenvalues Λ, `B = Q_q B̂ = W_qᵀ G` with
`G = S L_q B̂ Λ⁻¹`, and `W̃_q = A W_q` with the small matrix `A = I − L_q B̂ Gᵀ`. No inverse of `L_q` is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qkedit.spectral.controls import ModeDraws
from qkedit.spectral.edit import suppress
from qkedit.spectral.factors import with_float64
from qkedit.spectral.product import QKProduct
from qkedit.spectral.query_edit import QueryEdit
from qkedit.spectral.suppression import Suppression
from qkedit.spectral.update import QueryUpdate

# Directions with less than this share of the strongest one's energy are rounding, and need no protection.
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class RestrictedProduct:
    """A product without some directions of its queries.

    Attributes:
        product: M̃, with the queries `W̃_q` in float64.
        rows: A of each head, `W̃_q = A W_q`, float64 `[H, d_h, d_h]`.
        kept_energy: `‖M̃‖² / ‖M‖²`, `[H]`; 1 for a zero product.
    """

    product: QKProduct
    rows: Tensor
    kept_energy: Tensor

    def suppress(self, suppression: Suppression, draws: ModeDraws | None = None) -> QueryEdit:
        """Return the edit of the unrestricted product's queries; see `suppress`.

        Gaps are those of M̃, and an `energy` of the suppression is a share of its energy; the energy that is removed
        is a share of the energy of M. Only the full channel can be restricted.
        """
        edit = suppress(self.product, suppression, draws)
        update = QueryUpdate(edit.update.left, edit.update.right_query @ self.rows)
        return replace(edit, update=update, energy_removed=edit.energy_removed * self.kept_energy)


def restricted(product: QKProduct, moments: Tensor, directions: int) -> RestrictedProduct:
    """Return the product restricted to queries orthogonal to the principal directions of some logits.

    Args:
        product: the heads of one layer.
        moments: S of each head, `[H, d_h, d_h]`: the sum of `g gᵀ` over the keys g, as the queries meet them.
        directions: r; fewer where the logits have fewer.
    """
    lower = product.query_factor
    moments = moments.to(lower)
    energies, vectors = torch.linalg.eigh(lower.mT @ moments @ lower)
    energies, vectors = energies.flip(-1)[..., :directions], vectors.flip(-1)[..., :directions]
    used = energies > _NEGLIGIBLE * energies[..., :1]
    found = torch.where(used.unsqueeze(-2), vectors, 0.0)  # B̂
    inverse = torch.where(used, 1 / torch.where(used, energies, 1.0), 0.0)
    keys = moments @ lower @ found * inverse.unsqueeze(-2)  # G
    rows = torch.eye(lower.shape[-1]).to(lower) - lower @ found @ keys.mT
    queries = rows @ with_float64(product.query).double().to(rows.device)
    own = product.core.square().sum((-2, -1))
    lost = (found.mT @ product.core).square().sum((-2, -1))
    kept = torch.where(own > 0, 1 - lost / torch.where(own > 0, own, 1.0), 1.0).clamp(0, 1)
    return RestrictedProduct(QKProduct(queries, product.key.to(queries.device), product.key_head), rows, kept)
