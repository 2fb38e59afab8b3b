"""The area under the ROC curve with its interval: how well one number tells two kinds of items apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qkedit.evaluation.statistics.intervals import LEVEL, RESAMPLES, SEED
from qkedit.evaluation.statistics.resampling import Array, percentiles

# The number of counts in memory at a time.
_COUNTS_AT_A_TIME = 2_000_000


@dataclass(frozen=True)
class Auroc:
    """The probability that a random positive item has the larger score, ties counting half.

    Attributes:
        value: 0.5 for a score that tells nothing; None if there are no positives or no negatives.
        low: the lower end of the interval; None without a value, or for one group alone.
        high: its upper end.
        positives: the number of positive items.
        negatives: the number of the others.
        groups: the number of independent groups of items.
        level: the interval's coverage, 0 to 1.
    """

    value: float | None
    low: float | None
    high: float | None
    positives: int
    negatives: int
    groups: int
    level: float


def auroc(
    scores: Sequence[float],
    positive: Sequence[bool],
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Auroc:
    """Return the AUROC with a percentile interval of the bootstrap over groups.

    Args:
        scores: a number for each item.
        positive: whether the item is one of those that should have larger scores.
        groups: the group of each item, such as its image; groups are drawn whole.
        level: coverage of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap; the same seed gives the same interval.
    """
    of_item = np.unique(np.array(groups, dtype=str), return_inverse=True)[1] if len(groups) else np.empty(0, int)
    number = int(of_item.max()) + 1 if len(groups) else 0
    values, wanted = np.array(scores, dtype=np.float64), np.array(positive, dtype=bool)
    # Pairs that are in order, by the groups of both: a resample weighs them by how often it draws the groups.
    won = np.zeros((number, number))
    others = of_item[~wanted]
    for value, group in zip(values[wanted], of_item[wanted], strict=True):
        order = (np.sign(value - values[~wanted]) + 1) / 2
        np.add.at(won[group], others, order)
    counts = np.stack(
        [np.bincount(of_item[kind], minlength=number).astype(np.float64) for kind in (wanted, ~wanted)], axis=1
    )
    value = _areas(np.ones((1, number)), won, counts)[0] if number else np.nan
    low = high = None
    if number > 1 and not np.isnan(value):
        generator, areas = np.random.default_rng(seed), []
        step = max(1, _COUNTS_AT_A_TIME // number)
        for start in range(0, resamples, step):
            drawn = generator.multinomial(number, np.full(number, 1 / number), min(step, resamples - start))
            areas.append(_areas(drawn.astype(np.float64), won, counts))
        low, high = percentiles(np.concatenate(areas), level)
    return Auroc(
        None if np.isnan(value) else float(value),
        low,
        high,
        int(wanted.sum()),
        int((~wanted).sum()),
        number,
        level,
    )


def _areas(weights: Array, won: Array, counts: Array) -> Array:
    """Return the area for each row of weights of the groups; NaN for a row without positives or negatives."""
    pairs = np.prod(weights @ counts, axis=1)
    ordered = ((weights @ won) * weights).sum(axis=1)
    return np.divide(ordered, pairs, out=np.full_like(ordered, np.nan), where=pairs > 0)
