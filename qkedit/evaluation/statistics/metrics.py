"""Every metric as a ratio of sums over groups of items, and which direction of it is better.

A metric is Σ numerator / Σ denominator over groups, where a group is what is judged together and so is not
independent, such as all questions about one image. Resampling groups then needs no knowledge of the benchmark, and
means the same for a plain share such as accuracy, for F1 = 2tp / (2tp + fp + fn), and for a share of whole groups such
as MME's accuracy+.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qkedit.errors import UsageError
from qkedit.evaluation.files.records import AmberAnswerItem, AmberCaptionItem, CaptionItem, Item, YesNoItem
from qkedit.evaluation.statistics.group_metrics import GROUP_METRICS

# A numerator and a denominator.
Parts = tuple[float, float]


@dataclass(frozen=True)
class Metric:
    """One metric of one kind of item.

    Attributes:
        name: its plain name, such as `chair_i`.
        parts: numerator and denominator of the items of one group; several pairs one after the other where the metric
            is a sum of ratios, as MME's score is.
    """

    name: str
    parts: Callable[[Sequence[Item]], Sequence[float]]


_OF_YES_NO: dict[str, Callable[[Any], Parts]] = {
    "accuracy": lambda item: (item.right, 1),
    "precision": lambda item: (item.parsed == item.truth == "yes", item.parsed == "yes"),
    "recall": lambda item: (item.parsed == item.truth == "yes", item.truth == "yes"),
    "f1": lambda item: (2 * (item.parsed == item.truth == "yes"), (item.parsed == "yes") + (item.truth == "yes")),
    "yes_ratio": lambda item: (item.parsed == "yes", 1),
    "hr": lambda item: (item.parsed == "yes" and item.truth == "no", item.truth == "no"),
}
_OF_CAPTION: dict[str, Callable[[Any], Parts]] = {
    "chair_s": lambda item: (bool(item.hallucinated), 1),
    "chair_i": lambda item: (len(item.hallucinated), len(item.found)),
    "recall": lambda item: (len(item.covered), len(item.truth)),
    "mean_words": lambda item: (item.words, 1),
}
# In percent, as AMBER prints them.
_OF_AMBER_ANSWER: dict[str, Callable[[Any], Parts]] = {
    "accuracy": lambda item: (100 * item.right, 1),
    "precision": lambda item: (100 * (item.parsed == item.truth == "no"), item.parsed == "no"),
    "recall": lambda item: (100 * (item.parsed == item.truth == "no"), item.truth == "no"),
    "f1": lambda item: (200 * (item.parsed == item.truth == "no"), (item.parsed == "no") + (item.truth == "no")),
}
_OF_AMBER_CAPTION: dict[str, Callable[[Any], Parts]] = {
    "chair": lambda item: (100 * len(item.hallucinated), len(item.found)),
    "cover": lambda item: (100 * len(item.covered), len(item.truth)),
    "hal": lambda item: (100 * bool(item.hallucinated), 1),
    "cog": lambda item: (100 * len(item.fallen_for), len(item.likely)),
    "mean_words": lambda item: (item.words, 1),
}
# The first kind that fits counts.
_TABLES = (
    (AmberAnswerItem, _OF_AMBER_ANSWER),
    (AmberCaptionItem, _OF_AMBER_CAPTION),
    (YesNoItem, _OF_YES_NO),
    (CaptionItem, _OF_CAPTION),
)


def ratio_parts(item: Item) -> dict[str, Parts]:
    """Return numerator and denominator of each metric for one item alone.

    An answer that is neither yes nor no is wrong, a missed yes where yes is true, and no hallucination; one that the
    benchmark's rules drop has nothing but zeros.
    """
    return {name: _parts_of(of_item, item) for name, of_item in _table_of(item).items()}


def metrics_of(items: Sequence[Item], benchmark: str = "") -> Mapping[str, Metric]:
    """Return the metrics that these items have, by name; those of MME and HallusionBench are of groups of items.

    Args:
        items: of one split.
        benchmark: whose items they are; without it, they are taken for what their kind is.

    Raises:
        UsageError: there are no items.
    """
    if not items:
        raise UsageError("there are no items", where="metrics", remedy="score some answers first")
    if benchmark in GROUP_METRICS:
        return {name: Metric(name, parts) for name, parts in GROUP_METRICS[benchmark](items).items()}
    return {name: Metric(name, _summed(of_item)) for name, of_item in _table_of(items[0]).items()}


def groups_of(items: Iterable[Item]) -> list[list[Item]]:
    """Return the items of each group, in order; an item without a group is one by itself."""
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        groups[(item.group, "") if item.group else ("", item.id)].append(item)
    return list(groups.values())


def _table_of(item: Item) -> Mapping[str, Callable[[Any], Parts]]:
    return next(table for kind, table in _TABLES if isinstance(item, kind))


def _parts_of(of_item: Callable[[Any], Parts], item: Item) -> Parts:
    return (0, 0) if isinstance(item, YesNoItem) and not item.counted else of_item(item)


def _summed(of_item: Callable[[Any], Parts]) -> Callable[[Sequence[Item]], Parts]:
    def parts(items: Sequence[Item]) -> Parts:
        each = [_parts_of(of_item, item) for item in items]
        return sum(numerator for numerator, _ in each), sum(denominator for _, denominator in each)

    return parts
