"""A slow reference of the edits: float64 numpy, dense `D × D` products, one head at a time.

It shares no code with the package: every number follows from the definitions (arXiv 2606.20419 for the query-only
suppression of dominant singular modes) by `numpy.linalg` on the dense product `M = W_qᵀ W_k`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Modes:
    """`part = Σ values[i] · left[:, i] right[:, i]ᵀ`, values descending and non-negative, `width` columns per mode."""

    values: Matrix  # one per mode
    left: Matrix  # [D, width · modes]
    right: Matrix
    width: int

    def cut(self, count: int) -> Matrix:
        """Return the sum of the `count` dominant modes, `[D, D]`."""
        columns = count * self.width
        weights = np.repeat(self.values, self.width)[:columns]
        return (self.left[:, :columns] * weights) @ self.right[:, :columns].T


def channel_part(product: Matrix, channel: str) -> Matrix:
    if channel == "symmetric":
        return (product + product.T) / 2
    if channel == "antisymmetric":
        return (product - product.T) / 2
    return product


def modes(product: Matrix, channel: str = "full") -> Modes:
    """Return the singular modes of the channel's part of a dense product."""
    part = channel_part(product, channel)
    if channel == "symmetric":
        eigenvalues, vectors = np.linalg.eigh(part)
        order = np.argsort(-np.abs(eigenvalues), kind="stable")
        signs = np.where(eigenvalues[order] < 0, -1.0, 1.0)
        return Modes(np.abs(eigenvalues[order]), vectors[:, order], vectors[:, order] * signs, 1)
    left, values, right = np.linalg.svd(part)
    if channel == "antisymmetric":
        # Singular values of an antisymmetric matrix come in equal pairs: one pair per rotation plane.
        return Modes(values[0 : len(values) // 2 * 2 : 2], left, right.T, 2)
    return Modes(values, left, right.T, 1)


def projected_query(query: Matrix, key: Matrix, count: int, retain: float) -> Matrix:
    """Return `W_q (I − (1−ρ) U_k U_kᵀ)` with U from the dense decomposition of `W_qᵀ W_k`."""
    left = modes(query.T @ key).left[:, :count]
    return query @ (np.eye(query.shape[1]) - (1 - retain) * left @ left.T)


def least_squares_query(query: Matrix, key: Matrix, count: int, retain: float) -> Matrix:
    """Return `(M' W_k⁺)ᵀ`, the least-squares write-back of the suppressed product."""
    product = query.T @ key
    suppressed = product - (1 - retain) * modes(product).cut(count)
    return (suppressed @ np.linalg.pinv(key)).T


@dataclass(frozen=True)
class ChannelEdit:
    """The suppression of a channel as far as queries can realise it."""

    query: Matrix
    unrealized_share: float
    leak: float


def channel_query(query: Matrix, key: Matrix, channel: str, count: int, retain: float) -> ChannelEdit:
    """Return `W_q + (Δ W_k⁺)ᵀ` for a change Δ in `channel`, and the missing and the unintended share of Δ."""
    increment = -(1 - retain) * modes(query.T @ key, channel).cut(count)
    written = increment @ np.linalg.pinv(key, rcond=1e-12)
    realised = written @ key
    other = channel_part(realised, "antisymmetric" if channel == "symmetric" else "symmetric")
    asked = np.linalg.norm(increment) or 1.0
    return ChannelEdit(query + written.T, np.linalg.norm(realised - increment) / asked, np.linalg.norm(other) / asked)


def gap(values: Matrix, count: int, rank: int) -> float:
    """Return `σ_k / σ_{k+1}`, NaN if no mode is cut or none remains."""
    return float("nan") if count in (0, rank) else values[count - 1] / values[count]


def effective_rank(values: Matrix) -> float:
    """Return `exp` of the entropy of the energy shares."""
    total = 0.0
    for share in values**2 / np.sum(values**2):
        if share > 0:
            total -= share * np.log(share)
    return float(np.exp(total))


def count_for_energy(values: Matrix, share: float) -> int:
    """Return the smallest number of leading modes that hold `share` of the energy."""
    total, running = np.sum(values**2), 0.0
    for number, value in enumerate(values, start=1):
        running += value**2
        if running >= share * total * (1 - 1e-12):
            return number
    raise AssertionError("all modes together carry all of the energy")


def rank(product: Matrix) -> int:
    return int(np.linalg.matrix_rank(product))
