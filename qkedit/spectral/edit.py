"""Suppress modes of the query-key product by changing the query weights alone.

Suppressing the k dominant singular modes down to a share ρ asks for

    M' = M − (1−ρ) Σ_{i≤k} σ_i u_i v_iᵀ = (I − (1−ρ) U_k U_kᵀ) M,

which the queries realise exactly while the keys stay as they are (QK Product Steering, arXiv 2606.20419, states the
closed-form query-only write-back; ρ, the projector for rank-deficient keys and the controls are our choices):

    W_q' = W_q (I − (1−ρ) U_k U_kᵀ) = W_q − (1−ρ) L_q Û_k Σ_k⁻¹ V̂_kᵀ L_kᵀ W_q.

The right-hand form holds for any factors with `L Lᵀ = W Wᵀ` and inverts only the singular values it suppresses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qkedit.spectral.channels import suppress_channel
from qkedit.spectral.controls import ModeDraws, index_matched, norm_matched
from qkedit.spectral.mode_selection import energy, gap
from qkedit.spectral.product import QKProduct
from qkedit.spectral.query_edit import QueryEdit, mode_counts
from qkedit.spectral.suppression import Suppression
from qkedit.spectral.update import QueryUpdate


def suppress(product: QKProduct, suppression: Suppression, draws: ModeDraws | None = None) -> QueryEdit:
    """Return the edit that `suppression` asks for on every head of `product`.

    Args:
        product: the heads of one layer.
        suppression: what to suppress.
        draws: the source of the controls' random numbers (seed, layer and the numbers of the heads); by default the
            suppression's seed and layer 0.

    Raises:
        NonFiniteWeightError: a weight holds NaN or infinity.
        UnmatchedControlError: an index-matched control is asked for, and a head has too few other modes.
    """
    draws = draws or ModeDraws(suppression.seed, 0, tuple(range(product.heads)))
    if suppression.channel != "full":
        return suppress_channel(product, suppression, draws)
    if suppression.control == "norm":
        return _suppress_random_frame(product, suppression, draws)
    modes = product.modes
    counts = mode_counts(modes.values, modes.ranks, suppression)
    if suppression.control == "index":
        counts, chosen = index_matched(counts, modes.ranks, draws)
    else:
        chosen = torch.arange(int(counts.max())).expand(product.heads, -1)
    return _suppress_modes(product, counts, chosen, suppression.retain)


def _suppress_modes(product: QKProduct, counts: Tensor, chosen: Tensor, retain: float) -> QueryEdit:
    """Suppress the modes numbered `chosen` `[H, m]`; head h uses its first `counts[h]`."""
    modes = product.modes
    device = modes.values.device
    counts, chosen = counts.to(device), chosen.to(device)
    used = torch.arange(chosen.shape[-1], device=device) < counts.unsqueeze(-1)
    suppressed = torch.where(used, modes.values.gather(-1, chosen), 0.0)
    inverse = torch.where(used, (1 - retain) / torch.where(used, suppressed, 1.0), 0.0)
    columns = chosen.unsqueeze(-2).expand(-1, product.head_size, -1)
    left = product.query_factor @ modes.left.gather(-1, columns)
    right = product.key_factor @ modes.right.gather(-1, columns)
    removed = (1 - retain**2) * torch.where(used, energy(modes.values).gather(-1, chosen), 0.0).sum(-1)
    return QueryEdit(
        QueryUpdate(-left * inverse.unsqueeze(-2), right.mT),
        counts,
        suppressed,
        removed,
        gap(modes.values, counts, modes.ranks),
    )


def _suppress_random_frame(product: QKProduct, suppression: Suppression, draws: ModeDraws) -> QueryEdit:
    """Suppress a random orthonormal frame, scaled to change the product as much as the top-k edit would."""
    modes = product.modes
    counts = mode_counts(modes.values, modes.ranks, suppression)
    target = (1 - suppression.retain) * torch.stack(
        [values[:count].square().sum().sqrt() for values, count in zip(modes.values, counts, strict=True)]
    )
    frame, scale = norm_matched(product, counts, target, draws)
    left = product.query_factor @ frame
    used = torch.arange(frame.shape[-1], device=counts.device) < counts.unsqueeze(-1)
    # What the frame removes from the product, per direction: there are no singular values here.
    strength = torch.where(used, torch.linalg.vector_norm(frame.mT @ product.core, dim=-1), 0.0)
    share = (
        (1 - (1 - scale) ** 2)
        * strength.square().sum(-1)
        / modes.values.square().sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
    )
    return QueryEdit(
        QueryUpdate(-left * scale[:, None, None], frame.mT @ product.query_factor_inverse),
        counts,
        strength,
        share,
        torch.full_like(share, torch.nan),
        scale=scale,
    )
