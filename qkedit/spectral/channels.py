"""The symmetric and antisymmetric parts of the query-key product, and edits of either.

    S = (M + Mᵀ)/2   mutual similarity,        A = (M − Mᵀ)/2   direction

(QK Product Steering, arXiv 2606.20419, finds the effect mainly in the symmetric one.) With the stack
`B = [W_q; W_k]` (`2d_h × D`), `B = L Qᵀ`, and `J = ½ [[0, I], [±I, 0]]`, a channel is `Bᵀ J B = Q (Lᵀ J L) Qᵀ`:
the `2d_h × 2d_h` core carries its spectrum exactly. S has real eigenvalues; A has imaginary pairs ±iω, each one
plane in which the residual stream is rotated, so A's modes are counted in planes and never cut in half.

Suppressing the modes spanned by the orthonormal columns `Ê` of the core asks for the increment
`Δ = −(1−ρ) Q P C Qᵀ`, `P = ÊÊᵀ`, `C = Lᵀ J L`. The queries can only write

    W_q' = W_q + (Δ W_k⁺)ᵀ = W_q − (1−ρ) (L_kᵇ⁺)ᵀ P Lᵀ Jᵀ B,       L_kᵇ = the key rows of L,

because Δ is in general not in the row space of `W_k`: what is realised is `Δ W_k⁺ W_k`. The *unrealized share*
`‖ΔW_k⁺W_k − Δ‖/‖Δ‖` says how much of the request is missing, the *leak* how much of it landed in the other channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qkedit.spectral.controls import ModeDraws, index_matched
from qkedit.spectral.factors import product_floor, pseudo_inverse
from qkedit.spectral.mode_selection import energy, gap, rank
from qkedit.spectral.product import QKProduct
from qkedit.spectral.query_edit import QueryEdit, mode_counts
from qkedit.spectral.suppression import Channel, Suppression
from qkedit.spectral.update import QueryUpdate


@dataclass(frozen=True)
class ChannelModes:
    """One channel of every head's product.

    `values` `[H, n]`: |λ| of S (n = 2d_h) or ω of A's planes (n = d_h), descending.
    `vectors` `[H, 2d_h, n·width]`: orthonormal columns in the coordinates of the stack's factor, `width` per mode.
    """

    stack_factor: Tensor  # L, [H, 2d_h, 2d_h]
    values: Tensor
    vectors: Tensor
    width: int  # 1 for S, 2 for A
    sign: int  # of Jᵀ against J: +1 for S, −1 for A
    ranks: Tensor  # [H], numerical rank in modes

    def basis(self, counts: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Return the vectors of some modes, `[H, 2d_h, m·width]`.

        Args:
            counts: the number of modes of each head, `[H]`; the columns beyond are zero.
            chosen: their numbers, `[H, m]`; the dominant ones by default.
        """
        vectors = self.vectors.unflatten(-1, (-1, self.width))
        if chosen is None:
            vectors = vectors[..., : int(counts.max()), :]
        else:
            columns = chosen[:, None, :, None].expand(-1, vectors.shape[1], -1, self.width)
            vectors = vectors.gather(-2, columns)
        used = torch.arange(vectors.shape[-2], device=counts.device) < counts.unsqueeze(-1)
        return (vectors * used[:, None, :, None]).flatten(-2)


def channel_modes(stack_factor: Tensor, channel: Channel) -> ChannelModes:
    """Return the modes of the `symmetric` or `antisymmetric` channel of every head.

    Args:
        stack_factor: `[H, 2d_h, 2d_h]`, see `QKProduct.stack_factor`; its query rows may be rotated.
        channel: `symmetric` or `antisymmetric`.
    """
    size = stack_factor.shape[-2] // 2
    query_rows, key_rows = stack_factor[..., :size, :], stack_factor[..., size:, :]
    half, floor = query_rows.mT @ key_rows / 2, product_floor(query_rows, key_rows)
    if channel == "symmetric":
        eigenvalues, vectors = torch.linalg.eigh(half + half.mT)
        order = eigenvalues.abs().argsort(dim=-1, descending=True, stable=True)
        vectors = vectors.gather(-1, order.unsqueeze(-2).expand_as(vectors))
        values = eigenvalues.abs().gather(-1, order)
        return ChannelModes(stack_factor, values, vectors, 1, 1, rank(values, floor))
    # i·(A's core) is Hermitian with eigenvalues ±ω; the real and imaginary part of ω's vector span its plane.
    eigenvalues, complex_vectors = torch.linalg.eigh(1j * (half - half.mT))
    values = eigenvalues[..., size:].flip(-1).clamp_min(0)
    planes = complex_vectors[..., size:].flip(-1)
    vectors = torch.stack([planes.real, planes.imag], dim=-1).flatten(-2) * 2**0.5
    return ChannelModes(stack_factor, values, vectors, 2, -1, rank(values, floor))


def write_back_quality(modes: ChannelModes, basis: Tensor, key_inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unrealized share and the leak `[H]` of suppressing the modes in `basis`; neither depends on ρ.

    `key_inverse` is `L_kᵇ⁺` `[H, 2d_h, d_h]`.
    """
    size = key_inverse.shape[-1]
    query_rows, key_rows = modes.stack_factor[..., :size, :], modes.stack_factor[..., size:, :]
    half = query_rows.mT @ key_rows / 2
    increment = basis @ (basis.mT @ (half + modes.sign * half.mT))
    realised = increment @ (key_inverse @ key_rows)
    other_channel = (realised - modes.sign * realised.mT) / 2
    asked = torch.linalg.matrix_norm(increment).clamp_min(torch.finfo(torch.float64).tiny)
    return (
        torch.linalg.matrix_norm(realised - increment) / asked,
        torch.linalg.matrix_norm(other_channel) / asked,
    )


def suppress_channel(product: QKProduct, suppression: Suppression, draws: ModeDraws) -> QueryEdit:
    """Return the closest query-only edit to suppressing the channel's dominant modes, or random ones of it."""
    modes = channel_modes(product.stack_factor, suppression.channel)
    counts = mode_counts(modes.values, modes.ranks, suppression)
    if suppression.control == "index":
        counts, chosen = (drawn.to(modes.values.device) for drawn in index_matched(counts, modes.ranks, draws))
    else:
        chosen = torch.arange(int(counts.max()), device=counts.device).expand(len(counts), -1)
    basis = modes.basis(counts, chosen)
    used = torch.arange(chosen.shape[-1], device=counts.device) < counts.unsqueeze(-1)

    size, strength = product.head_size, 1 - suppression.retain
    query_rows, key_rows = modes.stack_factor[..., :size, :], modes.stack_factor[..., size:, :]
    key_inverse = pseudo_inverse(key_rows)  # [H, 2d_h, d_h]
    left = -strength * key_inverse.mT @ basis
    # Lᵀ Jᵀ B = ½ (±L_qᵀ-rows pair with W_k and the L_k-rows with W_q); Jᵀ = ½ [[0, ±I], [I, 0]].
    right_query = basis.mT @ key_rows.mT / 2
    right_key = modes.sign * basis.mT @ query_rows.mT / 2

    unrealized_share, leak = write_back_quality(modes, basis, key_inverse)
    removed = (1 - suppression.retain**2) * torch.where(used, energy(modes.values).gather(-1, chosen), 0.0).sum(-1)
    return QueryEdit(
        QueryUpdate(left, right_query, right_key),
        counts,
        torch.where(used, modes.values.gather(-1, chosen), 0.0),
        removed,
        gap(modes.values, counts, modes.ranks),
        unrealized_share=unrealized_share,
        leak=leak,
    )
