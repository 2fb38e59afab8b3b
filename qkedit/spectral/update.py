"""The change of the query weights, kept as the low-rank product it is.

Every edit of the query-key product that leaves the keys alone has the form

    W_q' = W_q + left (right_q W_q + right_k W_k)

with `left` `[H, d_h, m]`, `right_q` and `right_k` `[H, m, d_h]`: the rows of the bracket are directions of the
residual stream, `m` of them, so a head's change has rank ≤ m (before rounding, exactly a LoRA of that rank).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qkedit.spectral.factors import converted, heads_per_piece, product_dtype
from qkedit.spectral.product import QKProduct


@dataclass(frozen=True)
class QueryUpdate:
    """`W_q' − W_q` of every head of a product, factored; float64."""

    left: Tensor  # [H, d_h, m]
    right_query: Tensor  # [H, m, d_h]
    right_key: Tensor | None = None  # [H, m, d_h]

    def directions(self, product: QKProduct) -> Tensor:
        """Return the directions `right_q W_q + right_k W_k`, `[H, m, D]`, in the widest dtype of the device."""
        return self._directions(product, slice(None), product.query.to(product_dtype(product.query.device)))

    def _directions(self, product: QKProduct, heads: slice, query: Tensor) -> Tensor:
        """The directions of `heads`, whose weights `query` are converted already."""
        rows = self.right_query[heads].to(query) @ query
        if self.right_key is not None:
            rows += self.right_key[heads].to(query) @ product.key[product.key_head[heads]].to(query)
        return rows

    def apply(self, product: QKProduct, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return the edited query weights, `[H, d_h, D]` in their storage dtype, and how far each head moved.

        The second value, `[H]`, is `‖W_q' − W_q‖ / ‖W_q‖` as realised *after* rounding to the storage dtype.
        `dtype` is that of the arithmetic; weights stored wider are computed as wide as they are stored.
        """
        query = product.query
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
            # Two thin products: the d_h × d_h matrix between them would cost d_h / m times as much.
            torch.baddbmm(weights, self.left[heads].to(weights), self._directions(product, heads, weights), out=change)
            edited[heads] = change
            difference = torch.linalg.vector_norm(change.copy_(edited[heads]).sub_(weights), dim=(-2, -1))
            size = torch.linalg.vector_norm(weights, dim=(-2, -1))
            moved.append(difference / size.clamp_min(torch.finfo(dtype).tiny))
        return edited, torch.cat(moved).cpu().double()

    def key_bias_effect(self, product: QKProduct, key_bias: Tensor) -> Tensor:
        """Return `‖(W_q' − W_q)ᵀ b_k‖` per head, `[H]`: the most a unit input moves a logit through the key bias.

        With biased keys the logit also changes by `x_iᵀ (W_q' − W_q)ᵀ b_k`, which no mode of the product shows.
        `key_bias` is `[H_kv, d_h]`.
        """
        bias = key_bias.to(self.left)[product.key_head.to(key_bias.device)]
        weights = bias.unsqueeze(1) @ self.left  # [H, 1, m], of the directions
        # The directions' lengths are those of their coordinates in the factor: nothing D wide is touched.
        if self.right_key is None:
            coordinates = self.right_query @ product.query_factor
        else:
            coordinates = torch.cat([self.right_query, self.right_key], dim=-1) @ product.stack_factor
        return torch.linalg.vector_norm((weights @ coordinates).squeeze(1), dim=-1).cpu()
