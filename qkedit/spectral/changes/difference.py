"""The distance between the query-key products of two models, per head.

With queries and keys of the models A and B, `Δ_q = W_qB − W_qA` and `Δ_k = W_kB − W_kA`,

    M_B − M_A  =  W_qBᵀ W_kB − W_qAᵀ W_kA  =  [Δ_q; W_qA]ᵀ [W_kB; Δ_k],

and `Δ_qᵀ W_k` where the keys are the same. Nothing of the size D × D is formed: the singular values of `Lᵀ R` are
those of `T_L T_Rᵀ`, with the triangles of the QR decompositions of `Lᵀ` and `Rᵀ`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qkedit.spectral.changes.figures import row_spaces


@dataclass(frozen=True)
class HeadWeights:
    """The weights of some heads, float64, and what rounding can give in them.

    Attributes:
        query: `[H, d_h, D]`.
        keys: as each of these heads meets them, norms folded in, `[H, d_h, D]`.
        query_noise: singular values of a change of the queries up to this belong to rounding, `[H]`.
        key_noise: likewise of the keys.
    """

    query: Tensor
    keys: Tensor
    query_noise: Tensor
    key_noise: Tensor


@dataclass(frozen=True)
class ProductDifference:
    """`M_B − M_A` of some heads.

    Attributes:
        norm: its Frobenius norm, `[H]`; NaN where weights hold NaN or infinity, or leave float64 when multiplied.
        ranks: per head how many of its singular values are above what rounding can give; None where the norm is NaN.
    """

    norm: Tensor
    ranks: list[int | None]


def product_norm(query: Tensor, keys: Tensor) -> Tensor:
    """Return `‖W_qᵀ W_k‖` (Frobenius) per head, `[H]`, of float64 `[H, d_h, D]`; NaN where it leaves float64."""
    return _norm(_core(query, keys))


def product_difference(one: HeadWeights, other: HeadWeights) -> ProductDifference:
    """Return the distance between the products of the same heads of two models.

    Args:
        one: of A.
        other: of B, of the same shapes.
    """
    change = other.query - one.query
    noise = torch.hypot(one.query_noise, other.query_noise)
    if torch.equal(one.keys, other.keys):
        norm = product_norm(change, one.keys)
        known = norm.isfinite()
        spaces = iter(row_spaces(change[known], noise[known]))
        keys = _triangle(one.keys)
        ranks = [
            # What rounding gives has every direction, so it is taken out before the keys mix it with the edit.
            int(torch.linalg.matrix_rank((change[head] @ next(spaces)).mT @ keys[head].mT)) if is_known else None
            for head, is_known in enumerate(known.tolist())
        ]
        return ProductDifference(norm, ranks)
    key_noise = torch.hypot(one.key_noise, other.key_noise)
    core = _core(torch.cat([change, one.query], 1), torch.cat([other.keys, other.keys - one.keys], 1))
    norm = _norm(core)
    known = norm.isfinite()
    values = torch.linalg.svdvals(torch.where(known[:, None, None], core, 0.0))
    largest = [_largest(weights[known]) for weights in (other.keys, one.query)]
    floor = noise[known] * largest[0] + key_noise[known] * largest[1]
    floor = torch.maximum(floor, max(core.shape[-2:]) * torch.finfo(torch.float64).eps * values[known, 0])
    counts = iter((values[known] > floor[:, None]).sum(-1).tolist())
    return ProductDifference(norm, [next(counts) if is_known else None for is_known in known.tolist()])


def _core(left: Tensor, right: Tensor) -> Tensor:
    """Return a small matrix with the singular values of `leftᵀ right`, `[H, m, n]`, of `[H, …, D]`."""
    return _triangle(left) @ _triangle(right).mT


def _triangle(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.mT, mode="r").R


def _norm(core: Tensor) -> Tensor:
    norm = torch.linalg.matrix_norm(core)
    return torch.where(norm.isfinite(), norm, torch.nan)


def _largest(weights: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(_triangle(weights), 2)
