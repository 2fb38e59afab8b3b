"""Metrics of MME and HallusionBench, where several answers have to be right together.

Each takes the items of a split and returns, by name, what one group of them adds to the sums: numerators and
denominators one after the other. Which image, figure or question an item belongs to stands in its id; whether a
question of HallusionBench is hard, in the item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qkedit.evaluation.files.records import HallusionBenchItem

# What one group adds: numerator, denominator, and so on.
OfGroup = Callable[[Sequence[Any]], Sequence[float]]


def mme_metrics(items: Sequence[Any]) -> dict[str, OfGroup]:
    """MME (arXiv 2306.13394): groups are images, two questions each, and scores of several tasks are added up."""
    tasks = sorted({_task(item) for item in items})

    def score(group: Sequence[Any]) -> list[float]:
        own = _task(group[0])
        return [
            part
            for task in tasks
            for numerator, denominator in (_answers_right(group), _image_right(group))
            for part in ((100 * numerator, denominator) if task == own else (0, 0))
        ]

    return {"acc": _answers_right, "acc_plus": _image_right, "score": score}


def hallusionbench_metrics(items: Sequence[Any]) -> dict[str, OfGroup]:
    """HallusionBench (arXiv 2310.14566): groups are sets of questions and figures that belong together."""
    metrics: dict[str, OfGroup] = {
        "a_acc": _answers_right,
        "f_acc": lambda group: _all_right(group, _figure),
        "q_acc": lambda group: _all_right(group, _question),
    }
    # Result files of other makers may not say which questions are hard.
    if all(isinstance(item, HallusionBenchItem) for item in items):
        metrics["easy_acc"] = lambda group: _all_right([item for item in group if not item.hard], _question)
        metrics["hard_acc"] = lambda group: _all_right([item for item in group if item.hard], _question)
    return metrics


GROUP_METRICS: Mapping[str, Callable[[Sequence[Any]], dict[str, OfGroup]]] = {
    "mme": mme_metrics,
    "hallusionbench": hallusionbench_metrics,
}


def _answers_right(group: Sequence[Any]) -> tuple[int, int]:
    return sum(item.right for item in group), sum(item.counted for item in group)


def _image_right(group: Sequence[Any]) -> tuple[int, int]:
    return int(sum(item.right for item in group) == 2), 1


def _task(item: Any) -> str:
    """`existence` of `existence/000000006040.jpg/1`."""
    return str(item.id).partition("/")[0]


def _all_right(items: Sequence[Any], key: Callable[[Any], str | None]) -> tuple[int, int]:
    """Return for how many keys every answer is right, and how many keys there are; None is no key."""
    right: dict[str, bool] = {}
    for item in items:
        if (name := key(item)) is not None:
            right[name] = right.get(name, True) and item.right
    return sum(right.values()), len(right)


def _figure(item: Any) -> str | None:
    """`VD_illusion_0_1` of `VD_illusion_0_1_3`; None for a supplement's original question, which shows none."""
    figure = str(item.id).rpartition("_")[0]
    return None if figure.startswith("VS_") and figure.endswith("_0") else figure


def _question(item: Any) -> str:
    """`VD_illusion_0_3` of `VD_illusion_0_1_3`."""
    group, _, number = str(item.id).rsplit("_", 2)
    return f"{group}_{number}"
