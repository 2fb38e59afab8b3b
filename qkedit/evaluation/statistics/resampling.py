"""Vectorised resampling of rows of sums, the basis of the statistics of runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# The number of counts in memory at a time, so that memory does not grow with the number of rows.
_COUNTS_AT_A_TIME = 2_000_000


def resampled(parts: Array, resamples: int, seed: int) -> Array:
    """Return the sums of `parts` [groups, columns] over groups drawn with replacement, [resamples, columns].

    Groups with equal parts are interchangeable: only how often each kind is drawn matters, which is multinomial. If
    nearly all groups differ, counting drawn indices is faster than numpy's multinomial.
    """
    generator = np.random.default_rng(seed)
    n = len(parts)
    kinds, sizes = np.unique(parts, axis=0, return_counts=True)
    by_kind = len(kinds) <= n // 5
    rows = kinds if by_kind else parts
    sums = np.empty((resamples, parts.shape[1]))
    step = max(1, _COUNTS_AT_A_TIME // len(rows))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        if by_kind:
            counts = generator.multinomial(n, sizes / n, size)
        else:
            drawn = generator.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums[start : start + size] = counts @ rows
    return sums


def percentiles(values: Array, level: float) -> tuple[float, float]:
    """Return the ends of the middle `level` of the values; resamples without a value are left out."""
    low, high = np.nanquantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def two_sided(differences: Array) -> float:
    """Return twice the share of resamples on the other side of zero, by the rule of the percentile interval.

    The observed difference counts as one more resample (Davison & Hinkley 1997, section 4.2), so that p is never 0.
    """
    known = differences[~np.isnan(differences)]
    below, above = np.count_nonzero(known <= 0), np.count_nonzero(known >= 0)
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(known) + 1)))
