"""The spectra of a layer's query-key products, for inspection before and after an edit.

Everything is computed from small factors, never from a `D × D` matrix. At a position offset n the keys are
`R_nᵀ W_k` (see `qkedit.spectral.rotary`), which gives a product like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qkedit.spectral.channels import channel_modes, write_back_quality
from qkedit.spectral.factors import gram, product_floor, pseudo_inverse
from qkedit.spectral.mode_selection import rank
from qkedit.spectral.product import QKProduct
from qkedit.spectral.query_edit import mode_counts
from qkedit.spectral.suppression import Suppression


@dataclass(frozen=True)
class Spectra:
    """One channel's spectrum of every head.

    `unrealized_share` is the share of the suppression that the queries cannot write, `leak` the share of it that lands
    in the other channel. Both are absent in the full channel, where everything is realised.
    """

    values: Tensor  # [H, n] σ, |λ| or ω, descending
    ranks: Tensor  # [H]
    counts: Tensor  # [H] modes counted as dominant
    unrealized_share: Tensor | None = None  # [H]
    leak: Tensor | None = None  # [H]


@dataclass(frozen=True)
class DominantSubspaces:
    """The spans of the dominant modes in the residual stream: orthonormal columns `[D, m]`, one tensor per head.

    The query side holds U_k, the key side V_k; a channel has one subspace, which is then both.
    """

    query_side: tuple[Tensor, ...]
    key_side: tuple[Tensor, ...]


def spectra(product: QKProduct, suppression: Suppression) -> Spectra:
    """Return the spectrum of every head; only the `channel` and the `k` or `energy` of `suppression` are used."""
    if suppression.channel == "full":
        values = torch.linalg.svdvals(product.core)
        ranks = rank(values, product_floor(product.query_factor, product.key_factor))
        return Spectra(values, ranks, mode_counts(values, ranks, suppression))
    modes = channel_modes(product.stack_factor, suppression.channel)
    counts = mode_counts(modes.values, modes.ranks, suppression)
    key_inverse = pseudo_inverse(modes.stack_factor[..., product.head_size :, :])
    unrealized_share, leak = write_back_quality(modes, modes.basis(counts), key_inverse)
    return Spectra(modes.values, modes.ranks, counts, unrealized_share, leak)


def dominant_subspaces(product: QKProduct, suppression: Suppression) -> DominantSubspaces:
    """Return the span of every head's dominant modes, in which two products can be compared: their factors differ.

    From `M V_k = U_k Σ_k`, `Mᵀ U_k = V_k Σ_k` and, in a channel, `(S or A) E = ±E Λ`: the spans follow without
    an inverse.
    """
    if suppression.channel == "full":
        modes = product.modes
        counts = mode_counts(modes.values, modes.ranks, suppression).tolist()
        seen_by_keys, seen_by_queries = product.key_factor @ modes.right, product.query_factor @ modes.left
        return DominantSubspaces(
            tuple(_span(query, seen_by_keys[head, :, : counts[head]]) for head, query in enumerate(product.query)),
            tuple(
                _span(product.key[key_head], seen_by_queries[head, :, : counts[head]])
                for head, key_head in enumerate(product.key_head.tolist())
            ),
        )
    channel = channel_modes(product.stack_factor, suppression.channel)
    counts = mode_counts(channel.values, channel.ranks, suppression).tolist()
    seen = channel.stack_factor @ channel.vectors
    size, key_heads = product.head_size, product.key_head.tolist()
    both = tuple(
        _span(
            torch.cat([product.query[head], product.key[key_heads[head]].to(product.query)]),
            torch.cat([seen[head, size:], channel.sign * seen[head, :size]])[:, : count * channel.width],
        )
        for head, count in enumerate(counts)
    )
    return DominantSubspaces(both, both)


def symmetric_share(product: QKProduct, suppression: Suppression) -> Tensor:
    """Return `‖S‖² / ‖M‖²` per head, `[H]`: 1 for a symmetric product, 0 for an antisymmetric one, NaN for zero.

    With `‖S‖² = (‖M‖² + tr M²) / 2` and `tr (W_qᵀ W_k)² = tr (W_k W_qᵀ)²` it needs no `D × D` matrix.
    `suppression` only tells which factors have been computed already.
    """
    if suppression.channel == "full":
        query_rows, key_rows = product.query_factor, product.key_factor
        cross = gram(product.key[product.key_head.to(product.key.device)], product.query).to(query_rows)
    else:
        stack, size = product.stack_factor, product.head_size
        query_rows, key_rows = stack[..., :size, :], stack[..., size:, :]
        cross = key_rows @ query_rows.mT
    trace = (cross * cross.mT).sum((-2, -1))
    energy = (query_rows.mT @ key_rows).square().sum((-2, -1))
    return ((1 + trace / energy) / 2).clamp(0, 1)


def bias_share(product: QKProduct, seen_by_keys: Tensor | None, key_bias: Tensor | None) -> Tensor:
    """Return, per head `[H]`, the share of a logit's variance that comes from biases, for inputs of unit variance.

    With norms folded in (`F` the map of a norm, `s` its shift, every normaliser taken as 1) the logit is

        (F_q (W_q x_i + b_q) + s_q)ᵀ (F_k (W_k x_j + b_k) + s_k).

    The product's term varies by `‖M‖²_F`, the keys' constant part by `‖W_qᵀ F_qᵀ (F_k b_k + s_k)‖²`, the queries' by
    `‖(F_k W_k)ᵀ (F_q b_q + s_q)‖²`; the two constant parts together do not vary.

    Args:
        product: of the raw queries and the folded keys.
        seen_by_keys: `(F_k W_k)ᵀ (F_q b_q + s_q)`, `[H, D]`. It is not a function of the product: `F_qᵀ`, which is in
            the folded keys, need not be invertible.
        key_bias: `F_qᵀ (F_k b_k + s_k)`, one for each key head of the product, `[H_kv, d_h]`.
    """
    brought = torch.zeros(product.heads, dtype=torch.float64, device=product.query_factor.device)
    if key_bias is not None:
        bias = key_bias.to(brought)[product.key_head.to(brought.device)]
        brought += (bias.unsqueeze(1) @ product.query_factor).square().sum((-2, -1))
    if seen_by_keys is not None:
        brought += seen_by_keys.to(brought).square().sum(-1)
    energy = product.core.square().sum((-2, -1))
    return brought / (brought + energy).clamp_min(torch.finfo(torch.float64).tiny)


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the angles between the spans of two sets of orthonormal columns, radians, ascending.

    There are as many as the smaller span has dimensions. Cosines are accurate for large angles and sines for small
    ones, so each angle is taken from the accurate one (Björck and Golub, Math. Comp. 27, 1973).
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


def _span(weights: Tensor, coefficients: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of the columns `Wᵀ c` `[D, m]`."""
    return torch.linalg.qr(weights.to(coefficients.device).double().mT @ coefficients).Q
