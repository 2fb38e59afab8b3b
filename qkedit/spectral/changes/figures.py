"""Measure the change of a head's weights from the weights alone: rank, row space, energy.

A stored change is the edit plus the rounding of the weights it was added to. Rounding has full rank, so the rank of a
change is the number of singular values above what rounding can give. An error matrix with independent entries of
standard deviations `s_ij` has a spectral norm of about `max_i √Σ_j s_ij² + max_j √Σ_i s_ij²` (Bandeira and van Handel
2016); `s_ij` is the distance of neighbouring numbers of the dtype over √12.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Upper bound of the share by which the largest singular value of an error matrix exceeds its typical size.
_MARGIN = 1.25


def rounding_noise(weights: Tensor) -> Tensor:
    """Estimate the largest singular value of each head's rounding errors, `[H]`.

    Args:
        weights: the heads in their storage dtype, `[H, d_h, D]`.
    """
    kind = torch.finfo(weights.dtype)
    _, exponents = torch.frexp(weights.double().abs().clamp_min(kind.tiny))
    variances = (torch.exp2(exponents.double() - 1) * kind.eps).square() / 12
    rows, columns = (variances.sum(axis).amax(-1).sqrt() for axis in (-1, -2))
    return _MARGIN * (rows + columns)


def row_spaces(change: Tensor, noise: Tensor) -> list[Tensor]:
    """Return an orthonormal basis of the row space of each head's change, `[D, r]` with r its numerical rank.

    Args:
        change: float64 `[H, d_h, D]`.
        noise: singular values up to this size come from rounding, `[H]`.
    """
    # Through the triangle of a QR decomposition, since D is much larger than d_h.
    basis, triangle = torch.linalg.qr(change.mT)
    _, values, right = torch.linalg.svd(triangle.mT, full_matrices=False)
    smallest = max(change.shape[-2:]) * torch.finfo(torch.float64).eps * values[:, :1]
    counts = (values > torch.maximum(noise[:, None], smallest)).sum(-1).tolist()
    return [basis[head] @ right[head, :count].mT for head, count in enumerate(counts)]


def energy_removed(before: Tensor, after: Tensor, keys: Tensor) -> Tensor:
    """Return `1 − ‖W_q'ᵀ W_k‖² / ‖W_qᵀ W_k‖²` per head, `[H]`: negative where energy was added, 0 for a zero head.

    Args:
        before: queries before the edit, `[H, d_h, D]`.
        after: queries after the edit.
        keys: the keys that each head reads, with norms folded in, `[H, d_h, D]`.
    """
    keys = keys.double()
    inner = keys @ keys.mT
    old, new = (((weights @ weights.mT) * inner).sum((-1, -2)) for weights in (before.double(), after.double()))
    return torch.where(old > 0, 1 - new / torch.where(old > 0, old, 1.0), 0.0)
