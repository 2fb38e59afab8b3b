"""Compute DSCR's formulas in plain Python loops, one per index."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]


def weights(
    depth: Vector,
    places: Sequence[Vector],
    sigma_d: float = 0.6,
    sigma_s: float = 0.6,
    alpha: float = 0.6,
    beta: float = 0.8,
) -> list[list[float]]:
    """Return `w[i][j]`, the share of token i in token j."""
    count = len(depth)
    raw = [[0.0] * count for _ in range(count)]
    for i in range(count):
        for j in range(count):
            if i != j:
                f_d = math.exp(-((depth[i] - depth[j]) ** 2) / (2 * sigma_d**2))
                distance = (places[i][0] - places[j][0]) ** 2 + (places[i][1] - places[j][1]) ** 2
                f_s = math.exp(-distance / (2 * sigma_s**2))
                raw[i][j] = f_d**alpha + f_s**beta
    totals = [sum(raw[k][j] for k in range(count)) for j in range(count)]
    return [[raw[i][j] / totals[j] for j in range(count)] for i in range(count)]


def z_scores(depth: Vector) -> list[float]:
    mean = sum(depth) / len(depth)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in depth) / len(depth))
    return [0.0 if deviation == 0 else (value - mean) / deviation for value in depth]


def mix(weight: Sequence[Vector], states: Sequence[Vector]) -> list[list[float]]:
    """Return `k̂_j = Σ_i w_ij k_i` of one head."""
    count, size = len(states), len(states[0])
    return [[sum(weight[i][j] * states[i][c] for i in range(count)) for c in range(size)] for j in range(count)]


def effective_tokens(weight: Sequence[Vector]) -> float:
    count = len(weight)
    return sum(1 / sum(weight[i][j] ** 2 for i in range(count)) for j in range(count)) / count
