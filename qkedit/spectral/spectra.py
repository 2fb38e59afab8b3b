"""The spectra of a layer's products: what there is to look at before and after an edit.

Everything is found from the small factors, so that a spectrum at a position offset is the same work again with
the rotation in between (`L_qᵀ R_nᵀ L_k`, see `qkedit.spectral.rotary`), and never a `D × D` matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qkedit.spectral.channels import channel_modes, write_back_quality
from qkedit.spectral.factors import gram, product_floor, pseudo_inverse
from qkedit.spectral.options import Suppression
from qkedit.spectral.product import QKProduct, singular_modes
from qkedit.spectral.spectrum import rank
from qkedit.spectral.suppression import mode_counts


@dataclass(frozen=True)
class Spectra:
    """One channel's spectrum of every head.

    `residual` and `leak` say how much of suppressing the dominant modes the queries cannot write, and how much
    of it lands in the other channel; both are absent in the full channel, where everything is realised.
    """

    values: Tensor  # [H, n] σ, |λ| or ω, descending
    ranks: Tensor  # [H]
    counts: Tensor  # [H] modes taken as dominant
    residual: Tensor | None = None  # [H]
    leak: Tensor | None = None  # [H]


@dataclass(frozen=True)
class DominantSubspaces:
    """Orthonormal bases of the dominant modes in the coordinates of the factors, one `[n, m]` a head.

    The query side holds U_k, the key side V_k; a channel has one subspace, which is then both.
    """

    query_side: tuple[Tensor, ...]
    key_side: tuple[Tensor, ...]


def spectra(product: QKProduct, suppression: Suppression, rotation: Tensor | None = None) -> Spectra:
    """Return the spectrum of every head.

    Args:
        product: the heads of one layer.
        suppression: its `channel`, and its `k` or `energy`, which say what counts as dominant.
        rotation: `R_n` `[d_h, d_h]` between queries and keys; none at offset 0.
    """
    if suppression.channel == "full":
        query = _rotated(product.query_factor, rotation)
        values = torch.linalg.svdvals(query.mT @ product.key_factor)
        ranks = rank(values, product_floor(query, product.key_factor))
        return Spectra(values, ranks, mode_counts(values, ranks, suppression))
    modes = channel_modes(_rotated_stack(product, rotation), suppression.channel)
    counts = mode_counts(modes.values, modes.ranks, suppression)
    key_inverse = pseudo_inverse(modes.stack_factor[..., product.head_size :, :])
    residual, leak = write_back_quality(modes, modes.basis(counts), key_inverse)
    return Spectra(modes.values, modes.ranks, counts, residual, leak)


def dominant_subspaces(
    product: QKProduct, suppression: Suppression, rotation: Tensor | None = None
) -> DominantSubspaces:
    """Return the span of every head's dominant modes; of one product at any offset, in the same coordinates."""
    if suppression.channel == "full":
        modes = singular_modes(_rotated(product.query_factor, rotation), product.key_factor)
        counts = mode_counts(modes.values, modes.ranks, suppression).tolist()
        return DominantSubspaces(
            tuple(left[:, :count] for left, count in zip(modes.left, counts, strict=True)),
            tuple(right[:, :count] for right, count in zip(modes.right, counts, strict=True)),
        )
    channel = channel_modes(_rotated_stack(product, rotation), suppression.channel)
    counts = mode_counts(channel.values, channel.ranks, suppression).tolist()
    both = tuple(vectors[:, : count * channel.width] for vectors, count in zip(channel.vectors, counts, strict=True))
    return DominantSubspaces(both, both)


def in_residual_stream(product: QKProduct, suppression: Suppression) -> DominantSubspaces:
    """Return the dominant subspaces as directions of the residual stream, orthonormal columns `[D, m]` a head.

    Only there can two products be compared: the coordinates of their factors differ.
    """
    within = dominant_subspaces(product, suppression)
    key_head = product.key_head.tolist()
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for head, (query_side, key_side) in enumerate(zip(within.query_side, within.key_side, strict=True)):
        query, key = product.query[head], product.key[key_head[head]]
        if suppression.channel == "full":
            sides[0].append(_directions(query, product.query_factor[head], query_side))
            sides[1].append(_directions(key, product.key_factor[head], key_side))
        else:
            stack = torch.cat([query, key])
            sides[0].append(_directions(stack, product.stack_factor[head], query_side))
    return DominantSubspaces(tuple(sides[0]), tuple(sides[1] or sides[0]))


def symmetric_share(product: QKProduct, suppression: Suppression, rotation: Tensor | None = None) -> Tensor:
    """Return `‖S‖² / ‖M‖²` per head, `[H]`: 1 for a symmetric product, 0 for an antisymmetric one, NaN for zero.

    With `‖S‖² = (‖M‖² + tr M²) / 2` and `tr (W_qᵀ R_nᵀ W_k)² = tr (R_nᵀ C)²`, `C = W_k W_qᵀ`, it needs no `D × D`
    matrix. `suppression` only tells which factors are at hand already.
    """
    if suppression.channel == "full":
        query_rows, key_rows = _rotated(product.query_factor, rotation), product.key_factor
        cross = gram(product.key[product.key_head.to(product.key.device)], product.query).to(query_rows)
        if rotation is not None:
            cross = cross @ rotation.to(cross).mT
    else:
        stack, size = _rotated_stack(product, rotation), product.head_size
        query_rows, key_rows = stack[..., :size, :], stack[..., size:, :]
        cross = key_rows @ query_rows.mT
    trace = (cross * cross.mT).sum((-2, -1))
    energy = (query_rows.mT @ key_rows).square().sum((-2, -1))
    return ((1 + trace / energy) / 2).clamp(0, 1)


def bias_share(product: QKProduct, query_bias: Tensor | None, key_bias: Tensor | None) -> Tensor:
    """Return, per head `[H]`, the share of a logit's variance that its biases bring, for unit-variance inputs.

    Of the logit `(W_q x_i + b_q)ᵀ (W_k x_j + b_k)` the product's term varies by `‖M‖²_F`, those of one bias by
    `‖W_qᵀ b_k‖²` and `‖W_kᵀ b_q‖²`; their product is constant. Biases are `[H, d_h]` and `[H_kv, d_h]`.
    """
    brought = torch.zeros(product.heads, dtype=torch.float64, device=product.query_factor.device)
    if key_bias is not None:
        bias = key_bias.to(brought)[product.key_head.to(brought.device)]
        brought += (bias.unsqueeze(1) @ product.query_factor).square().sum((-2, -1))
    if query_bias is not None:
        brought += (query_bias.to(brought).unsqueeze(1) @ product.key_factor).square().sum((-2, -1))
    energy = product.core.square().sum((-2, -1))
    return brought / (brought + energy).clamp_min(torch.finfo(torch.float64).tiny)


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the angles between the spans of two sets of orthonormal columns, radians, ascending.

    There are as many as the smaller span has dimensions. Cosines tell large angles well and sines small ones, so
    each angle is taken from the one that does (Björck and Golub, Math. Comp. 27, 1973).
    """
    if first.shape[-1] > second.shape[-1]:
        first, second = second, first
    overlap = second.mT @ first
    cosines = torch.linalg.svdvals(overlap).clamp_max(1)
    sines = torch.linalg.svdvals(first - second @ overlap).clamp_max(1).flip(-1)
    return torch.where(cosines > 0.5**0.5, sines.asin(), cosines.acos())


def kept_share(before: Tensor, after: Tensor) -> float | None:
    """Return the share of `before`'s span that lies in that of `after`, the mean squared cosine; None if empty."""
    dimensions = before.shape[-1]
    return float((after.mT @ before).square().sum()) / dimensions if dimensions else None


def _directions(weights: Tensor, factor: Tensor, coordinates: Tensor) -> Tensor:
    """Return `Q c` `[D, m]` for `W = L Qᵀ`: `Q c = Wᵀ L⁺ᵀ c`, made orthonormal again against rounding."""
    device = factor.device
    columns = weights.to(device, torch.float64).mT @ (pseudo_inverse(factor).mT @ coordinates)
    return torch.linalg.qr(columns).Q


def _rotated(query_factor: Tensor, rotation: Tensor | None) -> Tensor:
    return query_factor if rotation is None else rotation.to(query_factor) @ query_factor


def _rotated_stack(product: QKProduct, rotation: Tensor | None) -> Tensor:
    stack = product.stack_factor
    if rotation is None:
        return stack
    size = product.head_size
    return torch.cat([rotation.to(stack) @ stack[..., :size, :], stack[..., size:, :]], dim=-2)
