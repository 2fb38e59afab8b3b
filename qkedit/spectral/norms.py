"""Norms of queries and keys, folded into the query-key product.

Where a model normalises each head's query and key before the logit, the logit of tokens i and j is

    (F_q W_q x_i)ᵀ (F_k W_k x_j) / (n_i n_j)  =  x_iᵀ W_qᵀ (F_qᵀ F_k W_k) x_j / (n_i n_j)

with a fixed linear map `F` (the gains, and for a layer norm the removal of the mean) and normalisers n that depend
on the token. The bilinear part is the product of the *raw* queries with the folded keys `F_qᵀ F_k W_k`. With those
in place of `W_k`, an edit is the same as in a model without norms and its result is the query weight to store: nothing
has to be unfolded or divided by a gain, which may be zero. (This is our choice; the paper does not treat norms.)

The normaliser of an edited query changes too: a uniform rescale of a head is invisible after a norm, and a head
that loses its dominant modes has the rest of its logits scaled up.
"""

from __future__ import annotations

import torch
from torch import Tensor


def norm_map(kind: str, gains: Tensor) -> Tensor:
    """Return `F`, float64 `[H, d_h, d_h]`, for gains `[H, d_h]`.

    Args:
        kind: "rms" (`F = diag g`), "one-plus rms" (`diag(1 + g)`), "layer norm" (`diag(g) (I − 11ᵀ/d_h)`) or
            "l2" (`F = I`, whatever the gains).
        gains: the gains of each head; ones where the norm has no gains.
    """
    gains = gains.double()
    identity = torch.eye(gains.shape[-1], dtype=torch.float64).expand(len(gains), -1, -1)
    if kind == "rms":
        return torch.diag_embed(gains)
    if kind == "one-plus rms":
        return torch.diag_embed(1 + gains)
    if kind == "layer norm":
        return torch.diag_embed(gains) @ (identity - 1 / gains.shape[-1])
    if kind == "l2":
        return identity
    raise ValueError(f"unknown kind of norm {kind!r}")


def fold_keys(keys: Tensor, key_head: Tensor, query_maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys `F_qᵀ W`, and for each query head the key head that it reads.

    Args:
        keys: float64 `[H_kv, d_h, …]`, with their own maps applied; a bias `[H_kv, d_h, 1]` is folded in the same way.
        key_head: `[H]`.
        query_maps: `F_q`, float64 `[H, d_h, d_h]`.

    Query heads that share a key head still share one if their maps are equal; otherwise each gets its own.
    """
    if bool((query_maps == query_maps[:1]).all()):
        return query_maps[0].mT @ keys, key_head
    return query_maps.mT @ keys[key_head], torch.arange(len(key_head))
