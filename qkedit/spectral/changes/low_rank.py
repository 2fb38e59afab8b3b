"""A change of one weight as a product of two thin matrices, as LoRA adapters hold it.

An edit changes head h by `left_h directions_h`, of rank ≤ k_h. So a layer's change is

    W' − W = B A,     B [rows, r],  A [r, D],  r = Σ_h k_h,

with a block-diagonal B: the rows of head h use only its own k_h columns, and the rows of other heads, keys, values
and gates are zero. Before rounding this is exact.

The scale of a product can be divided between its factors in any way. Here each head's product is written as
`(U √Σ)(√Σ Vᵀ)`: both factors have the same size, so neither leaves the range of a 16-bit dtype before the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankChange:
    """`left @ right`, the change of a weight or of some of its rows; float64 on the CPU."""

    left: Tensor  # [rows, r], LoRA's B
    right: Tensor  # [r, D], LoRA's A

    @property
    def rank(self) -> int:
        """r, the number of columns of `left`."""
        return self.right.shape[0]

    def dense(self) -> Tensor:
        """Return the change itself, `[rows, D]`."""
        return self.left @ self.right

    def truncated(self, rank: int) -> tuple[LowRankChange, float]:
        """Return the best approximation of at most that rank, and its error `‖BA − B'A'‖ / ‖BA‖` (Frobenius).

        Where the rank is not larger, these are the change itself and 0. The columns of the approximation mix heads.
        """
        if rank >= self.rank:
            return self, 0.0
        left, values, right = _decomposed(self.left, self.right)
        kept, lost = values[:rank], values[rank:]
        size = torch.linalg.vector_norm(values)
        error = float(torch.linalg.vector_norm(lost) / size) if size > 0 else 0.0
        return _split(left[:, :rank], kept, right[:rank]), error


def head_changes(left: Tensor, directions: Tensor) -> list[LowRankChange]:
    """Return the change of each head, balanced.

    Args:
        left: `[H, d_h, m]`; a head with fewer than m modes has columns of zeros, which do not count for its rank.
        directions: `[H, m, D]`.
    """
    left, directions = left.cpu().double(), directions.cpu().double()
    # For queries near 1e-22 the two factors are near 1e22 and 1e-44, so they are balanced before they are squared.
    lengths = torch.linalg.vector_norm(directions, dim=-1)
    left = left * lengths.unsqueeze(-2)
    directions = directions / torch.where(lengths > 0, lengths, 1.0).unsqueeze(-1)
    counts = (left != 0).any(-2).sum(-1).tolist()
    changes = []
    for columns, rows, count in zip(left, directions, counts, strict=True):
        vectors, values, others = _decomposed(columns, rows)
        changes.append(_split(vectors[:, :count], values[:count], others[:count]))
    return changes


def nearest(change: Tensor, rank: int) -> LowRankChange:
    """Return the nearest product of at most that rank to a dense change `[rows, D]`."""
    # The small triangle has the singular values and the left vectors; D is much larger than a head's rows.
    basis, triangle = torch.linalg.qr(change.cpu().double().mT)
    left, values, right = torch.linalg.svd(triangle.mT, full_matrices=False)
    return _split(left[:, :rank], values[:rank], (right @ basis.mT)[:rank])


def stacked(parts: Sequence[tuple[int, LowRankChange]], rows: int) -> LowRankChange:
    """Return the change of a whole weight from the changes of its heads: `left` block-diagonal, `right` concatenated.

    Args:
        parts: the first row of each head, and its change.
        rows: the number of rows of the weight; rows outside all parts do not change.
    """
    rank = sum(change.rank for _, change in parts)
    left = torch.zeros(rows, rank, dtype=torch.float64)
    column = 0
    for start, change in parts:
        left[start : start + len(change.left), column : column + change.rank] = change.left
        column += change.rank
    return LowRankChange(left, torch.cat([change.right for _, change in parts]))


def _decomposed(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `U`, `σ` and `Vᵀ` of `left @ right` without forming the product."""
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right.mT)
    vectors, values, others = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    return left_basis @ vectors, values, others @ right_basis.mT


def _split(left: Tensor, values: Tensor, right: Tensor) -> LowRankChange:
    roots = values.sqrt()
    return LowRankChange(left * roots, roots.unsqueeze(-1) * right)
