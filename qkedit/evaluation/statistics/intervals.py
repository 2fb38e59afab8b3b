"""Intervals of metrics, and tests of the difference between two runs on the same items.

Items of one group (questions about one image) are not independent, so that resampling draws whole groups with
replacement: the cluster bootstrap (Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 3.8) with
percentile intervals. Two runs are compared on the same groups, so that the difficulty of an image cancels out. A plain
share of independent items gets Wilson's interval (JASA 22, 1927), which stays accurate at 0 and 1, and right against
wrong gets McNemar's exact test (Psychometrika 12, 1947). Several comparisons at once are corrected with Holm's method
(Scand. J. Statist. 6, 1979).

scipy is an extra (`pip install 'qkedit[evaluation]'`), imported where it is needed; the bootstrap needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.files.records import Item, YesNoItem
from qkedit.evaluation.metric import Metric, sum_of_ratios
from qkedit.evaluation.statistics.metrics import groups_of, metrics_of
from qkedit.evaluation.statistics.resampling import Array, percentiles, resampled, two_sided

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0

Method = Literal["auto", "wilson", "bootstrap"]


@dataclass(frozen=True)
class Interval:
    """One metric of one run.

    Attributes:
        metric: the metric's name.
        value: the metric; None where the denominator is zero.
        low: the interval's lower end; None if there is no interval (a single group, or no value).
        high: the interval's upper end.
        method: `wilson` or `bootstrap`.
        n: the number of items.
        groups: the number of independent groups among them.
        level: the interval's coverage, 0 to 1.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    method: str
    n: int
    groups: int
    level: float


@dataclass(frozen=True)
class Difference:
    """One metric of two runs on the same items.

    Attributes:
        metric: the metric's name.
        a: the first run's value; None where the denominator is zero.
        b: the second run's value.
        value: b − a.
        low: the lower end of the difference's interval; None if there is no interval.
        high: the upper end.
        p: the two-sided probability of a difference at least this large if there were none.
        test: the source of `p`: `bootstrap` or `mcnemar`.
        n: the number of items of each run.
        groups: the number of independent groups among them.
        level: the interval's coverage, 0 to 1.
    """

    metric: str
    a: float | None
    b: float | None
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    test: str
    n: int
    groups: int
    level: float


@dataclass(frozen=True)
class McNemar:
    """McNemar's test: the numbers of questions that only one run answers correctly, and the exact test's p."""

    only_a: int
    only_b: int
    p: float


def require_scipy() -> None:
    """Raise QkeditError with the remedy if scipy is not installed."""
    from importlib.util import find_spec

    if find_spec("scipy") is None:
        raise QkeditError("scipy is not installed", where="statistics", remedy="run: pip install 'qkedit[evaluation]'")


def interval(
    items: Sequence[Item],
    metric: str | Metric,
    *,
    method: Method = "auto",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Return a metric of one run with its interval.

    Args:
        items: the judged items, with `group` set where they are not independent.
        metric: one of `metrics_of(items)`, or its name.
        method: `wilson` for a plain share of independent items, `bootstrap` over groups, or `auto`: Wilson's where it
            applies, else the bootstrap.
        level: the coverage of the interval.
        resamples: the number of bootstrap resamples.
        seed: the seed of the bootstrap; the same seed gives the same interval.

    Raises:
        UsageError: the items do not have the metric, or Wilson's interval is requested where it does not apply.
        QkeditError: scipy is needed (for Wilson's interval) and not installed.
    """
    chosen = _chosen(items, metric)
    groups = groups_of(items)
    sums = _sums(groups, chosen)
    totals = sums.sum(axis=0)
    value = _value(chosen, totals)
    is_share = len(groups) == len(items) and _is_share(sums, chosen)
    if method == "wilson" and not is_share:
        raise UsageError(
            "Wilson's interval is for a plain share of independent items",
            where=chosen.name,
            remedy="use the bootstrap",
        )
    used = "bootstrap" if method == "bootstrap" or not is_share else "wilson"
    low: float | None = None
    high: float | None = None
    if used == "wilson":
        if value is not None:
            low, high = share_interval(int(totals[0]), int(totals[1]), level=level)
    elif value is not None and len(groups) > 1:
        low, high = percentiles(chosen.value(resampled(sums, resamples, seed)), level)
    return Interval(chosen.name, value, low, high, used, len(items), len(groups), level)


def share_interval(successes: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's interval of a share of independent items. Raises QkeditError without scipy."""
    require_scipy()
    from scipy.stats import binomtest

    bounds = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(bounds.low), float(bounds.high)


def paired(
    items_a: Sequence[Item],
    items_b: Sequence[Item],
    metric: str | Metric,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Difference:
    """Return the difference of a metric between two runs on the same items, as b − a.

    The interval is that of the cluster bootstrap over groups that both runs share. `p` is consistent with it: it is
    below 1 − level if the interval excludes zero.

    Args:
        items_a: the items of the first run.
        items_b: the items of the second run, with the same ids, in any order.
        metric: one of `metrics_of(items)`, or its name.
        level: the coverage of the interval.
        resamples: the number of bootstrap resamples; no p is below 2 / (resamples + 1).
        seed: the seed of the bootstrap; the same seed gives the same figures.

    Raises:
        UsageError: the runs do not have the same items, or the items do not have the metric.
    """
    first, second = _aligned(items_a, items_b)
    chosen = _chosen(first, metric)
    groups_a = groups_of(first)
    positions = {item.id: item for item in second}
    groups_b = [[positions[item.id] for item in group] for group in groups_a]
    of_a, of_b = _sums(groups_a, chosen), _sums(groups_b, chosen)
    a, b = _value(chosen, of_a.sum(axis=0)), _value(chosen, of_b.sum(axis=0))
    value = None if a is None or b is None else b - a
    low: float | None = None
    high: float | None = None
    p: float | None = None
    if value is not None and len(groups_a) > 1:
        drawn_a, drawn_b = np.hsplit(resampled(np.hstack([of_a, of_b]), resamples, seed), 2)
        differences = chosen.value(drawn_b) - chosen.value(drawn_a)
        low, high = percentiles(differences, level)
        p = two_sided(differences)
    return Difference(chosen.name, a, b, value, low, high, p, "bootstrap", len(first), len(groups_a), level)


def mcnemar(items_a: Sequence[Item], items_b: Sequence[Item]) -> McNemar:
    """Return McNemar's exact test of right against wrong on the same questions.

    It treats questions as independent, even if several are about one image, and leaves out those that either run
    drops from the counts.

    Raises:
        UsageError: the runs do not have the same items, or the items are not right or wrong.
        QkeditError: scipy is not installed.
    """
    require_scipy()
    from scipy.stats import binomtest

    first, second = _aligned(items_a, items_b)
    by_id = {item.id: item for item in second}
    only_a = only_b = 0
    for item in first:
        other = by_id[item.id]
        if not isinstance(item, YesNoItem) or not isinstance(other, YesNoItem):
            raise UsageError("captions are not right or wrong", where="McNemar's test", remedy="use `paired`")
        if not (item.counted and other.counted):
            continue
        only_a += item.right and not other.right
        only_b += other.right and not item.right
    # Without a question on which the runs differ, there is no evidence of a difference.
    p = float(binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number, by Holm's method; None stays None and does not count.

    The chance that any of the true null hypotheses falls below a threshold is at most that threshold, whatever the
    dependence between the tests.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[place] = largest
    return corrected


def _chosen(items: Sequence[Item], metric: str | Metric) -> Metric:
    if isinstance(metric, Metric):
        return metric
    known = metrics_of(items)
    if metric not in known:
        raise UsageError("these items have no such metric", where=metric, remedy=f"choose among {', '.join(known)}")
    return known[metric]


def _aligned(items_a: Sequence[Item], items_b: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    ids_a, ids_b = {item.id for item in items_a}, {item.id for item in items_b}
    if ids_a != ids_b or len(ids_a) < len(items_a) or len(ids_b) < len(items_b):
        raise UsageError(
            f"the runs do not have the same items: {len(ids_a - ids_b)} are only in the first, "
            f"{len(ids_b - ids_a)} only in the second",
            where="paired comparison",
            remedy="leave out items that are not in both, and give each id once",
        )
    return items_a, items_b


def _sums(groups: Sequence[Sequence[Item]], metric: Metric) -> Array:
    """Return the contribution of each group to the metric's totals, `[groups, columns]`."""
    try:
        return np.array([metric.sums(group) for group in groups], dtype=np.float64)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # items come from files
        raise UsageError(
            "the items lack the numbers that it sums", where=metric.name, remedy="score the answers again"
        ) from error


def _is_share(sums: Array, metric: Metric) -> bool:
    """Return whether the metric is a plain share: each group adds nothing, a failure or a success."""
    is_ratio = metric.value is sum_of_ratios and sums.shape[1] == 2
    return is_ratio and bool(np.isin(sums, (0, 1)).all() and (sums[:, 0] <= sums[:, 1]).all())


def _value(metric: Metric, totals: Array) -> float | None:
    value = float(metric.value(totals[None])[0])
    return None if np.isnan(value) else value
