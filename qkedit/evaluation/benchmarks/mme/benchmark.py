"""MME as a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qkedit.evaluation.benchmarks.mme import scoring
from qkedit.evaluation.benchmarks.plain_functions import BenchmarkOfFunctions, Functions
from qkedit.evaluation.files.records import Answer, Item, Question, YesNoItem
from qkedit.evaluation.metric import Better, Metric, Unit


def _answers_right(group: Sequence[YesNoItem]) -> tuple[int, int]:
    return sum(item.right for item in group), sum(item.counted for item in group)


def _image_right(group: Sequence[YesNoItem]) -> tuple[int, int]:
    return int(sum(item.right for item in group) == 2), 1


def _task_of(item: YesNoItem) -> str:
    """Return the task of an item: `existence` of `existence/000000006040.jpg/1`."""
    return item.id.partition("/")[0]


def _score_over(tasks: Sequence[str]) -> Callable[[Sequence[YesNoItem]], list[float]]:
    """Return the sums of MME's score: 100 (accuracy + accuracy+), summed over these tasks."""

    def sums(group: Sequence[YesNoItem]) -> list[float]:
        own = _task_of(group[0])
        return [
            part
            for task in tasks
            for numerator, denominator in (_answers_right(group), _image_right(group))
            for part in ((100 * numerator, denominator) if task == own else (0, 0))
        ]

    return sums


class Mme(BenchmarkOfFunctions):
    """MME (arXiv 2306.13394): groups are images with two questions each."""

    name = "mme"
    title = "MME"
    paper = "2306.13394"
    splits = scoring.SPLITS
    aggregates = tuple(scoring.AGGREGATES)
    metrics = (
        Metric("acc", Better.HIGHER, Unit.SHARE, _answers_right, is_share_right=True),
        Metric("acc_plus", Better.HIGHER, Unit.SHARE, _image_right),
        Metric("score", Better.HIGHER, Unit.NUMBER, _score_over(scoring.TASKS)),
    )
    item_kinds = (YesNoItem,)
    functions = Functions(scoring.load_questions, scoring.score, scoring.load_answers)

    def splits_answered(self, questions: Sequence[Question], answers: Sequence[Answer]) -> tuple[str | None, ...]:
        """Return the tasks with any answers, and the aggregates whose tasks all have answers."""
        return scoring.answered_splits(questions, answers)

    def metrics_of(self, items: Sequence[Item]) -> tuple[Metric, ...]:
        """Return the metrics of a split; its score is the sum over its tasks."""
        tasks = sorted({_task_of(item) for item in items if isinstance(item, YesNoItem)})
        return (*self.metrics[:2], replace(self.metrics[2], sums=_score_over(tasks)))
