"""Metrics: sums over groups of items, a value computed from the sums, a direction and a unit.

A group holds the items that are judged together and so are not independent, such as all questions about one image. A
metric sums some numbers over the groups, and its value depends only on the totals: Σ numerator / Σ denominator for a
plain share such as accuracy, for F1 = 2tp / (2tp + fp + fn), and for a share of whole groups such as MME's accuracy+;
another function of the totals for metrics such as BLEU. So groups can be resampled without knowing the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from qkedit.evaluation.files.records import MeasuredItem, YesNoItem

# Importing numpy takes a tenth of a second, and scores without intervals do not need it.
if TYPE_CHECKING:
    from qkedit.evaluation.statistics.resampling import Array


class Better(Enum):
    """The better direction of a metric."""

    HIGHER = "higher"
    LOWER = "lower"
    # The metric describes the answers; neither more nor less of it is better.
    NEITHER = "neither"


class Unit(Enum):
    """The unit of a metric."""

    SHARE = "share"  # from 0 to 1
    PERCENT = "percent"  # a share from 0 to 100, as some benchmarks print them
    HUNDREDTHS = "hundredths"  # any number, which papers print times 100: CIDEr's 1.05 as 105
    NUMBER = "number"


@dataclass(frozen=True)
class Meaning:
    """The interpretation of a metric's figures.

    Attributes:
        name: the plain name, such as `chair_i`.
        better: the better direction.
        unit: the unit of the figures.
    """

    name: str
    better: Better = Better.NEITHER
    unit: Unit = Unit.NUMBER


UNKNOWN = Meaning("")
"""The meaning of an unknown figure: neither direction is better, and any number is possible."""


def sum_of_ratios(totals: Array) -> Array:
    """Return the sum of the ratios of columns 0 and 1, 2 and 3, … for each row.

    Args:
        totals: alternating numerators and denominators, [rows, columns].

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
        sums: the contribution of one group's items to the totals; the same number of values for every group.
        value: computes the metric of each row of totals, [rows, columns] to [rows]; NaN if it has no value.
        is_hallucination: whether it is a rate of hallucinations, which shorter answers can lower.
        loss: the name of what a lower value costs, when answers hallucinate less: `lost recall`; empty for no cost.
        is_share_right: whether it is the share of right answers, so that McNemar's test compares two runs.
    """

    sums: Callable[[Sequence[Any]], Sequence[float]] = lambda items: (0.0, 0.0)
    value: Callable[[Array], Array] = sum_of_ratios
    is_hallucination: bool = False
    loss: str = ""
    is_share_right: bool = False

    def value_of(self, items: Sequence[Any]) -> float | None:
        """Return the metric of items, without resampling; None if it has no value."""
        import numpy as np

        value = float(self.value(np.array([self.sums(items)], dtype=np.float64))[0])
        return None if np.isnan(value) else value


def ratio(of_item: Callable[[Any], tuple[float, float]]) -> Callable[[Sequence[Any]], tuple[float, float]]:
    """Return the sums of a ratio over items.

    Args:
        of_item: returns the numerator and denominator of one item. An answer that the rules drop adds nothing.
    """

    def sums(items: Sequence[Any]) -> tuple[float, float]:
        each = [of_item(item) for item in items if not isinstance(item, YesNoItem) or item.counted]
        return sum(numerator for numerator, _ in each), sum(denominator for _, denominator in each)

    return sums


def measured(name: str) -> Callable[[Sequence[MeasuredItem]], Sequence[float]]:
    """Return the function that sums the numbers of `MeasuredItem`s under a name."""

    def sums(items: Sequence[MeasuredItem]) -> Sequence[float]:
        return [sum(column) for column in zip(*(item.sums[name] for item in items), strict=True)]

    return sums
