"""The query-key product of an attention layer's heads, kept factored.

For query head h reading key head g, `M_h = W_q^hᵀ W_k^g` (`[D, D]`, rank ≤ d_h), and `x_iᵀ M_h x_j` is the
attention logit of query token i and key token j before rotation, biases and the factor `1/√d_h`
(QK Product Steering, arXiv 2606.20419). With `W_q = L_q Q_qᵀ` and `W_k = L_k Q_kᵀ`,

    M = Q_q (L_qᵀ L_k) Q_kᵀ,        L_qᵀ L_k = Û Σ V̂ᵀ,        U = Q_q Û,   V = Q_k V̂.

The left singular vectors `U` live on the query side: directions of the residual stream as the queries read it. `V`
lives on the key side. They and `S` have the usual names of the factors of a singular value decomposition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

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
from qkedit.spectral.mode_selection import effective_rank, rank
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


@dataclass(frozen=True, repr=False)
class QKProduct:
    """`W_qᵀ W_k` of H query heads sharing H_kv key heads, never multiplied out.

    Args:
        query: `[H, d_h, D]`, any floating dtype: the rows of `q_proj` head by head.
        key: `[H_kv, d_h, D]`, in the same dtype or float64, on the same device or on the CPU if that has no float64.
        key_head: for each query head the key head it reads, `[H]`; by default the grouped-query order
            `h // (H / H_kv)`. A key head that several query heads share is factored once.

    Example:
        >>> query, key = torch.randn(8, 32, 128), torch.randn(2, 32, 128)
        >>> product = QKProduct(query, key)
        >>> product
        QKProduct(heads=8, key_heads=2, head_size=32, width=128, torch.float32, cpu)
        >>> product.S.shape, product[3].U(2).shape
        (torch.Size([8, 32]), torch.Size([1, 128, 2]))
    """

    query: Tensor
    key: Tensor
    key_head: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    # `qkedit.product_of`: qkedit.runtime.products sets it, since this package does not import models.
    from_model: ClassVar[Callable[..., QKProduct]]

    def __post_init__(self) -> None:
        """Check the shapes, and fill in the grouped-query order by default."""
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

    def __repr__(self) -> str:
        """Show the sizes, the dtype and the device, not the weights."""
        return (
            f"QKProduct(heads={self.heads}, key_heads={len(self.key)}, head_size={self.head_size}, "
            f"width={self.query.shape[2]}, {self.query.dtype}, {self.query.device})"
        )

    def __len__(self) -> int:
        """H."""
        return self.heads

    def __getitem__(self, heads: int | slice | Sequence[int]) -> QKProduct:
        """Return the product of one query head or of several; a single head keeps its dimension, H = 1."""
        places = range(self.heads)
        chosen = (
            [places[heads]]
            if isinstance(heads, int)
            else list(places[heads])
            if isinstance(heads, slice)
            else [places[head] for head in heads]
        )
        return QKProduct(self.query[chosen], self.key, self.key_head[chosen])

    @property
    def S(self) -> Tensor:  # noqa: N802 – Σ, as everywhere
        """The singular values of every head, descending, float64 `[H, d_h]`."""
        return self.modes.values

    def U(self, k: int | None = None) -> Tensor:  # noqa: N802
        """Return the first k left singular vectors (all by default), in columns, float64 `[H, D, k]`: the query side.

        `U = W_qᵀ L_q⁻ᵀ Û`. Columns of modes beyond the numerical rank are zero.
        """
        coordinates = self.query_factor_inverse.mT @ self.modes.left[..., :k]
        return self._within_rank(with_float64(self.query).double().mT @ coordinates)

    def Vh(self, k: int | None = None) -> Tensor:  # noqa: N802
        """Return the first k right singular vectors (all by default), in rows, float64 `[H, k, D]`: the key side."""
        coordinates = pseudo_inverse(self.key_factor).mT @ self.modes.right[..., :k]
        keys = with_float64(self.key).double()[self.key_head.to(self.key.device)]
        return self._within_rank(keys.mT @ coordinates.to(keys.device)).mT

    def norm(self) -> Tensor:
        """Return `‖M‖_F` of every head, float64 `[H]`."""
        return self.S.square().sum(-1).sqrt()

    @property
    def effective_rank(self) -> Tensor:
        """`exp(entropy(σ² / Σσ²))` of every head, float64 `[H]`."""
        return effective_rank(self.S)

    def _within_rank(self, vectors: Tensor) -> Tensor:
        inside = torch.arange(vectors.shape[-1], device=vectors.device) < self.modes.ranks.to(vectors.device)[:, None]
        return torch.where(inside[:, None], vectors, 0.0)

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
        """`L_k` of the key head that each query head reads, float64 `[H, d_h, d_h]`; factored once per key head."""
        return factor(self.key, "key")[self.key_head]

    @once
    def query_factor_inverse(self) -> Tensor:
        """`L_q⁺`, float64 `[H, d_h, d_h]`."""
        return pseudo_inverse(self.query_factor)

    @once
    def core(self) -> Tensor:
        """`L_qᵀ L_k`, float64 `[H, d_h, d_h]`: a small matrix with the product's singular values."""
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
        """Return `M` of one head, float64 `[D, D]` on the CPU. For small models only: M is D/d_h times larger."""
        query, key = self.query[head], self.key[int(self.key_head[head])]
        return query.cpu().double().mT @ key.cpu().double()
