"""The change of the query weights, kept as a low-rank product.

Every edit of the query-key product that leaves the keys alone has the form

    W_q' = W_q + left (right_q W_q + right_k W_k)

with `left` `[H, d_h, m]`, `right_q` and `right_k` `[H, m, d_h]`: the rows of the bracket are directions of the
residual stream, `m` of them, so a head's change has rank ≤ m (before rounding, exactly a LoRA of that rank).

For queries and keys near 1e-22, `left` is near 1e22 and a direction near 1e-44, where float32 has lost its digits. So
each direction is scaled to a length of about 1 by a power of two, which is exact, and `left` is divided by it. Heads
whose own scale is extreme are scaled to about 1 before the arithmetic and back after it in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qkedit.spectral.factors import converted, heads_per_piece, product_dtype
from qkedit.spectral.product import QKProduct

# Heads of real models have norms between 2⁻¹⁰ and 2¹⁰, so they are not scaled.
_ORDINARY_EXPONENT = 40
_LARGEST_EXPONENT = 120


@dataclass(frozen=True)
class QueryUpdate:
    """`W_q' − W_q` of every head of a product, factored; float64."""

    left: Tensor  # [H, d_h, m]
    right_query: Tensor  # [H, m, d_h]
    right_key: Tensor | None = None  # [H, m, d_h]

    def directions(self, product: QKProduct) -> Tensor:
        """Return the directions `right_q W_q + right_k W_k`, `[H, m, D]`, in the widest dtype of the device."""
        return self._directions(product, slice(None), product.query.to(product_dtype(product.query.device)), None)

    def _directions(self, product: QKProduct, heads: slice, query: Tensor, key_scale: Tensor | None) -> Tensor:
        """Return the directions of `heads`: `query` holds their converted weights, keys are scaled by `key_scale`."""
        rows = self.right_query[heads].to(query) @ query
        if self.right_key is not None:
            keys = product.key[product.key_head[heads]]
            keys = keys if key_scale is None else keys * key_scale[heads].to(keys.device, query.dtype)
            rows += self.right_key[heads].to(query) @ keys.to(query)
        return rows

    def apply(self, product: QKProduct, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return the edited query weights, `[H, d_h, D]` in their storage dtype, and the relative change of each head.

        The second value, `[H]`, is `‖W_q' − W_q‖ / ‖W_q‖` as realised *after* rounding to the storage dtype.
        `dtype` is the dtype of the arithmetic; weights in a wider storage dtype are computed in that one.
        """
        query, (balanced, query_scale, key_scale) = product.query, self._balanced(product)
        dtype = torch.promote_types(dtype, query.dtype)
        dtype = min(dtype, product_dtype(query.device), key=lambda choice: choice.itemsize)
        edited = torch.empty_like(query)
        moved = []
        step = heads_per_piece(query, dtype)
        memory, changed = (torch.empty(step, *query.shape[1:], dtype=dtype, device=query.device) for _ in range(2))
        for start in range(0, len(query), step):
            heads = slice(start, start + step)
            weights = converted(query[heads], memory)
            change = changed[: len(weights)]
            if query_scale is not None:
                scale = query_scale[heads].to(weights)
                weights *= scale
            # Two thin products: forming the d_h × d_h matrix between them would cost d_h / m times as much.
            directions = balanced._directions(product, heads, weights, key_scale)
            torch.baddbmm(weights, balanced.left[heads].to(weights), directions, out=change)
            if query_scale is not None:
                change /= scale
            edited[heads] = change
            change.copy_(edited[heads])
            if query_scale is not None:
                change *= scale
            difference = torch.linalg.vector_norm(change.sub_(weights), dim=(-2, -1))
            size = torch.linalg.vector_norm(weights, dim=(-2, -1))
            moved.append(difference / size.clamp_min(torch.finfo(dtype).tiny))
        return edited, torch.cat(moved).cpu().double()

    def requested(self, product: QKProduct) -> Tensor:
        """Return `‖W_q' − W_q‖ / ‖W_q‖` per head, `[H]`, before any rounding; 0 for a zero head."""
        # The directions are coordinates times orthonormal rows, so the coordinates have the same lengths.
        size = torch.linalg.matrix_norm(product.query_factor)
        change = torch.linalg.matrix_norm(self.left @ self._coordinates(product))
        return torch.where(size > 0, change / torch.where(size > 0, size, 1.0), 0.0).cpu()

    def _coordinates(self, product: QKProduct) -> Tensor:
        """Return the directions in the orthonormal basis of the factors, `[H, m, n]`, without reading D columns."""
        if self.right_key is None:
            return self.right_query @ product.query_factor
        return torch.cat([self.right_query, self.right_key], dim=-1) @ product.stack_factor

    def _balanced(self, product: QKProduct) -> tuple[QueryUpdate, Tensor | None, Tensor | None]:
        """Return the same update with directions of length about 1, and the scales of queries and keys it is for.

        A scale is a power of two per head, `[H, 1, 1]`; None where no head needs one.
        """
        query_scale, key_scale = _scale(product.query_factor), None
        if self.right_key is not None:
            key_scale = _scale(product.key_factor)
        lengths = torch.linalg.vector_norm(self._coordinates(product), dim=-1)
        stretch = torch.where(lengths > 0, torch.exp2(-torch.frexp(lengths).exponent.double()), 1.0)
        left, right_query = self.left / stretch.unsqueeze(-2), self.right_query * stretch.unsqueeze(-1)
        right_key = None if self.right_key is None else self.right_key * stretch.unsqueeze(-1)
        if query_scale is not None:
            left, right_query = left * query_scale, right_query / query_scale
        if right_key is not None and key_scale is not None:
            right_key = right_key / key_scale
        return QueryUpdate(left, right_query, right_key), query_scale, key_scale

    def key_bias_effect(self, product: QKProduct, key_bias: Tensor) -> Tensor:
        """Return `‖(W_q' − W_q)ᵀ b_k‖` per head, `[H]`: the largest effect of a unit input through the key bias.

        With biased keys the logit also changes by `x_iᵀ (W_q' − W_q)ᵀ b_k`, which no mode of the product shows.
        `key_bias` is `[H_kv, d_h]`.
        """
        bias = key_bias.to(self.left)[product.key_head.to(key_bias.device)]
        weights = bias.unsqueeze(1) @ self.left  # [H, 1, m], of the directions
        return torch.linalg.vector_norm((weights @ self._coordinates(product)).squeeze(1), dim=-1).cpu()


def _scale(factors: Tensor) -> Tensor | None:
    """Return the power of two that scales each head to about 1, `[H, 1, 1]`; None where every norm is moderate.

    Moderate means that float32 holds the squares of the numbers and their sums.
    """
    exponents = torch.frexp(torch.linalg.matrix_norm(factors)).exponent
    if int(exponents.abs().max()) <= _ORDINARY_EXPONENT:
        return None
    # Beyond it float32 could not hold the scale; the remaining factor is harmless.
    return torch.exp2(-exponents.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT).double())[:, None, None]
