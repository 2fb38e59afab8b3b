"""The metrics of a benchmark's items, the descriptions of its figures, and items in independent groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from qkedit.errors import UsageError
from qkedit.evaluation.answer_times import TIME, TIME_METRICS
from qkedit.evaluation.benchmarks.benchmark import Benchmark
from qkedit.evaluation.benchmarks.registry import benchmark_named, benchmark_names
from qkedit.evaluation.drift_metrics import DRIFT, DRIFT_METRICS
from qkedit.evaluation.files.records import AmberAnswerItem, AmberCaptionItem, Item, YesNoItem
from qkedit.evaluation.metric import UNKNOWN, Meaning, Metric


def metrics_of(items: Sequence[Item], benchmark: str = "") -> Mapping[str, Metric]:
    """Return the metrics that these items have, by name.

    Args:
        items: the items of one split.
        benchmark: the benchmark of the items; without it, or if it is not installed, the kind of the items decides.

    Raises:
        UsageError: there are no items, items of several kinds, or items that only an uninstalled benchmark knows.
        QkeditError: an installed package's benchmark cannot be used.
    """
    if not items:
        raise UsageError("there are no items", where="metrics", remedy="score some answers first")
    kinds = {type(item) for item in items}
    if len(kinds) > 1 and not all(issubclass(kind, YesNoItem) for kind in kinds):
        raise UsageError("the items are of several kinds", where="metrics", remedy="score the answers again")
    if benchmark == TIME:
        return {metric.name: metric for metric in TIME_METRICS}
    rules = _installed(benchmark)
    if rules is None or not all(issubclass(kind, rules.item_kinds) for kind in kinds):
        # A file of another tool may use any benchmark's name for its own kind of items.
        rules = benchmark_named("amber" if isinstance(items[0], AmberAnswerItem | AmberCaptionItem) else "custom")
    if not issubclass(next(iter(kinds)), rules.item_kinds):
        raise UsageError(
            f"only the benchmark {benchmark!r} can sum its items",
            where="metrics",
            remedy="install the package that provides it",
        )
    return {metric.name: metric for metric in rules.metrics_of(items)}


def meaning_of(benchmark: str, name: str) -> Meaning:
    """Return the description of a figure, by the benchmark's and the metric's plain name.

    A figure of a benchmark that is not installed has the meaning of that name in the user's own questions.

    Raises:
        QkeditError: an installed package's benchmark cannot be used.
    """
    rules = _installed(benchmark) or benchmark_named("custom")
    metrics: Sequence[Meaning] = DRIFT_METRICS if benchmark == DRIFT else rules.metrics
    return next((metric for metric in metrics if metric.name == name), UNKNOWN)


def groups_of(items: Iterable[Item]) -> list[list[Item]]:
    """Return the items of each group, in order; an item without a group forms its own."""
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        groups[(item.group, "") if item.group else ("", item.id)].append(item)
    return list(groups.values())


def _installed(benchmark: str) -> Benchmark | None:
    return benchmark_named(benchmark) if benchmark in benchmark_names() else None
