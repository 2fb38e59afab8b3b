"""Metrics: sums over groups of items, a value computed from the sums, a direction and a unit.

A group is what is judged together and so is not independent, such as all questions about one image. A metric adds up
some numbers over the groups and has a value that depends on the totals alone: Σ numerator / Σ denominator for a plain
share such as accuracy, for F1 = 2tp / (2tp + fp + fn), and for a share of whole groups such as MME's accuracy+; other
functions of the totals for others, as BLEU. Resampling groups then needs no knowledge of the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from qkedit.evaluation.files.records import MeasuredItem, YesNoItem

# numpy takes a tenth of a second; whoever scores without intervals needs none of it.
if TYPE_CHECKING:
    from qkedit.evaluation.statistics.resampling import Array


class Better(Enum):
    """The better direction of a metric."""

    HIGHER = "higher"
    LOWER = "lower"
    # It describes the answers; neither more nor less of it is an aim.
    NEITHER = "neither"


class Unit(Enum):
    """The unit of a metric."""

    SHARE = "share"  # from 0 to 1
    PERCENT = "percent"  # a share from 0 to 100, as some benchmarks print them
    HUNDREDTHS = "hundredths"  # any number, of which papers print the hundredfold, as CIDEr's 1.05 for 105
    NUMBER = "number"


@dataclass(frozen=True)
class Meaning:
    """The interpretation of a metric's figures.

    Attributes:
        name: plain, such as `chair_i`.
        better: which direction is better.
        unit: what it counts in.
    """

    name: str
    better: Better = Better.NEITHER
    unit: Unit = Unit.NUMBER


UNKNOWN = Meaning("")
"""Of a figure that nothing is known about: neither direction is better, and any number is possible."""


def sum_of_ratios(totals: Array) -> Array:
    """Return the sum of the ratios of columns 0 and 1, 2 and 3, … for each row.

    Args:
        totals: numerators and denominators in turn, [rows, columns].

    Returns:
        One value per row, NaN where a denominator is zero.
    """
    import numpy as np

    numerators, denominators = totals[:, 0::2], totals[:, 1::2]
    ratios = np.divide(numerators, denominators, out=np.full_like(numerators, np.nan), where=denominators != 0)
    value: Array = ratios.sum(axis=1)
    return value


@dataclass(frozen=True)
class Metric(Meaning):
    """One metric of a benchmark's items.

    Attributes:
        sums: what the items of one group add to the totals; as many numbers for every group.
        value: the metric of each row of totals, [rows, columns] to [rows]; NaN where it has none.
        is_hallucination: whether it is a rate of hallucinations, which saying less can lower.
        loss: what a lower value costs the reader of answers that hallucinate less: `lost recall`; empty for nothing.
        is_share_right: whether it is the share of right answers, so that McNemar's test compares two runs.
    """

    sums: Callable[[Sequence[Any]], Sequence[float]] = lambda items: (0.0, 0.0)
    value: Callable[[Array], Array] = sum_of_ratios
    is_hallucination: bool = False
    loss: str = ""
    is_share_right: bool = False

    def value_of(self, items: Sequence[Any]) -> float | None:
        """Return the metric of items that need no resampling; None where it has no value."""
        import numpy as np

        value = float(self.value(np.array([self.sums(items)], dtype=np.float64))[0])
        return None if np.isnan(value) else value


def ratio(of_item: Callable[[Any], tuple[float, float]]) -> Callable[[Sequence[Any]], tuple[float, float]]:
    """Return the sums of a ratio over items.

    Args:
        of_item: numerator and denominator of one item. An answer that the rules drop adds nothing.
    """

    def sums(items: Sequence[Any]) -> tuple[float, float]:
        each = [of_item(item) for item in items if not isinstance(item, YesNoItem) or item.counted]
        return sum(numerator for numerator, _ in each), sum(denominator for _, denominator in each)

    return sums


def measured(name: str) -> Callable[[Sequence[MeasuredItem]], Sequence[float]]:
    """Return the sums of what `MeasuredItem`s hold under a name."""

    def sums(items: Sequence[MeasuredItem]) -> Sequence[float]:
        return [sum(column) for column in zip(*(item.sums[name] for item in items), strict=True)]

    return sums
