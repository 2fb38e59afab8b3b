"""MME as a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qkedit.evaluation.benchmarks.benchmark import Benchmark
from qkedit.evaluation.benchmarks.mme import scoring
from qkedit.evaluation.files.records import Answer, Item, Question, Score, YesNoItem
from qkedit.evaluation.metric import Better, Metric, Unit


def _answers_right(group: Sequence[YesNoItem]) -> tuple[int, int]:
    return sum(item.right for item in group), sum(item.counted for item in group)


def _image_right(group: Sequence[YesNoItem]) -> tuple[int, int]:
    return int(sum(item.right for item in group) == 2), 1


def _task_of(item: YesNoItem) -> str:
    """`existence` of `existence/000000006040.jpg/1`."""
    return item.id.partition("/")[0]


def _score_over(tasks: Sequence[str]) -> Callable[[Sequence[YesNoItem]], list[float]]:
    """Return the sums of MME's score: 100 (accuracy + accuracy+), added up over these tasks."""

    def sums(group: Sequence[YesNoItem]) -> list[float]:
        own = _task_of(group[0])
        return [
            part
            for task in tasks
            for numerator, denominator in (_answers_right(group), _image_right(group))
            for part in ((100 * numerator, denominator) if task == own else (0, 0))
        ]

    return sums


class Mme(Benchmark):
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

    def read_questions(
        self, data: Path, split: str | None, rule: str | None, files: Mapping[str, Path]
    ) -> tuple[Question, ...]:
        """Return the questions of a task, of an aggregate's tasks, or of every task that is there."""
        return scoring.load_questions(data, split)

    def judge(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        *,
        split: str | None,
        rule: str | None,
        allow_missing: bool,
    ) -> Score:
        """Return the score of one split; see `score`."""
        return scoring.score(questions, answers, split=split, parser=rule, allow_missing=allow_missing)

    def load_answers(self, file: Path) -> tuple[Answer, ...]:
        """Return the answers of a file in MME's own format or the common one."""
        return scoring.load_answers(file)

    def splits_answered(self, questions: Sequence[Question], answers: Sequence[Answer]) -> tuple[str | None, ...]:
        """Return the tasks of which something is answered, and the aggregates of which every task is."""
        return scoring.answered_splits(questions, answers)

    def metrics_of(self, items: Sequence[Item]) -> tuple[Metric, ...]:
        """Return the metrics of a split; its score adds up the tasks that it has."""
        tasks = sorted({_task_of(item) for item in items if isinstance(item, YesNoItem)})
        return (*self.metrics[:2], replace(self.metrics[2], sums=_score_over(tasks)))
