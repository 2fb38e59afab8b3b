"""The query-key product of an attention layer's heads, kept factored.

For query head h reading key head g, `M_h = W_q^hᵀ W_k^g` (`[D, D]`, rank ≤ d_h), and `x_iᵀ M_h x_j` is the
attention logit of query token i and key token j before rotation, biases and the factor `1/√d_h`
(QK Product Steering, arXiv 2606.20419). With `W_q = L_q Q_qᵀ` and `W_k = L_k Q_kᵀ`,

    M = Q_q (L_qᵀ L_k) Q_kᵀ,        L_qᵀ L_k = Û Σ V̂ᵀ,        U = Q_q Û,   V = Q_k V̂.

The left singular vectors `U` live on the query side: directions of the residual stream as the queries read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qkedit.spectral.factors import (
    check_finite,
    factor,
    factor_of_gram,
    gram,
    product_floor,
    pseudo_inverse,
    with_float64,
)
from qkedit.spectral.mode_selection import rank
from qkedit.spectral.once import once


@dataclass(frozen=True)
class SingularModes:
    """The singular triplets of each head's product, in the coordinates of the factors.

    `values` descend; `left` and `right` hold Û and V̂ in their columns; all float64.
    """

    values: Tensor  # [H, d_h]
    left: Tensor  # [H, d_h, d_h]
    right: Tensor  # [H, d_h, d_h]
    ranks: Tensor  # [H], numerical rank


@dataclass(frozen=True)
class QKProduct:
    """`W_qᵀ W_k` of H query heads sharing H_kv key heads, never multiplied out.

    Args:
        query: `[H, d_h, D]`, any floating dtype: the rows of `q_proj` head by head.
        key: `[H_kv, d_h, D]`, the same or float64, on the same device or on the CPU if that has no float64.
        key_head: for each query head the key head it reads, `[H]`; grouped-query order `h // (H / H_kv)`
            when left out. Several query heads may share one; it is then factored once.

    Example:
        >>> query, key = torch.randn(8, 32, 128), torch.randn(2, 32, 128)
        >>> QKProduct(query, key).modes.values.shape
        torch.Size([8, 32])
    """

    query: Tensor
    key: Tensor
    key_head: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def __post_init__(self) -> None:
        """Check the shapes and fill in the grouped-query order."""
        if self.query.ndim != 3 or self.key.ndim != 3 or self.query.shape[1:] != self.key.shape[1:]:
            raise ValueError(
                f"query [H, d_h, D] and key [H_kv, d_h, D] must agree in d_h and D, "
                f"got {tuple(self.query.shape)} and {tuple(self.key.shape)}"
            )
        if self.key_head.numel() == 0:
            heads, key_heads = len(self.query), len(self.key)
            if heads % key_heads:
                raise ValueError(f"{heads} query heads cannot share {key_heads} key heads evenly")
            object.__setattr__(self, "key_head", torch.arange(heads) // (heads // key_heads))

    @property
    def heads(self) -> int:
        """H."""
        return len(self.query)

    @property
    def head_size(self) -> int:
        """d_h."""
        return self.query.shape[1]

    @once
    def query_factor(self) -> Tensor:
        """`L_q`, float64 `[H, d_h, d_h]`, `L_q L_qᵀ = W_q W_qᵀ`."""
        return factor(self.query, "query")

    @once
    def key_factor(self) -> Tensor:
        """`L_k` of the key head that each query head reads, float64 `[H, d_h, d_h]`; factored once a key head."""
        return factor(self.key, "key")[self.key_head]

    @once
    def query_factor_inverse(self) -> Tensor:
        """`L_q⁺`, float64 `[H, d_h, d_h]`."""
        return pseudo_inverse(self.query_factor)

    @once
    def core(self) -> Tensor:
        """`L_qᵀ L_k`, float64 `[H, d_h, d_h]`: the product's singular values in a small matrix."""
        return self.query_factor.mT @ self.key_factor

    @once
    def modes(self) -> SingularModes:
        """The singular modes of the product."""
        left, values, right = torch.linalg.svd(self.core)
        floor = product_floor(self.query_factor, self.key_factor)
        return SingularModes(values, left, right.mT, rank(values, floor))

    @once
    def stack_factor(self) -> Tensor:
        """`L` of the stack `[W_q; W_k]` of each query head and its key head, float64 `[H, 2d_h, 2d_h]`."""
        query, keys = self.query, self.key[self.key_head.to(self.key.device)]
        query_gram, key_gram, cross = gram(query, query), gram(self.key, self.key), gram(query, keys)
        check_finite(query_gram, "query")
        check_finite(key_gram, "key")
        key_gram = key_gram[self.key_head.to(cross.device)]
        products = torch.cat([torch.cat([query_gram, cross], -1), torch.cat([cross.mT, key_gram], -1)], -2)
        query, keys = with_float64(query), with_float64(keys)
        return factor_of_gram(products, lambda heads: torch.cat([query[heads], keys[heads]], dim=1))

    def dense(self, head: int) -> Tensor:
        """Return `M` of one head, float64 `[D, D]` on the CPU. For small models only: it is D/d_h times larger."""
        query, key = self.query[head], self.key[int(self.key_head[head])]
        return query.cpu().double().mT @ key.cpu().double()
