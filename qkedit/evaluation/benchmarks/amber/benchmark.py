"""AMBER as a benchmark. Its positive class is `no`, and its figures are percentages, as its own script prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qkedit.evaluation.benchmarks.amber import scoring
from qkedit.evaluation.benchmarks.benchmark import Benchmark
from qkedit.evaluation.files.records import AmberAnswerItem, AmberCaptionItem, Answer, Item, Question, Score
from qkedit.evaluation.metric import Better, Metric, Unit, ratio


def _is_true(item: AmberAnswerItem) -> bool:
    return item.parsed == item.truth == "no"


ANSWER_METRICS = (
    Metric("accuracy", Better.HIGHER, Unit.PERCENT, ratio(lambda item: (100 * item.right, 1)), is_share_right=True),
    Metric("precision", Better.HIGHER, Unit.PERCENT, ratio(lambda item: (100 * _is_true(item), item.parsed == "no"))),
    Metric(
        "recall",
        Better.HIGHER,
        Unit.PERCENT,
        ratio(lambda item: (100 * _is_true(item), item.truth == "no")),
        loss="lost recall",
    ),
    Metric(
        "f1",
        Better.HIGHER,
        Unit.PERCENT,
        ratio(lambda item: (200 * _is_true(item), (item.parsed == "no") + (item.truth == "no"))),
    ),
)
DESCRIPTION_METRICS = (
    Metric(
        "chair",
        Better.LOWER,
        Unit.PERCENT,
        ratio(lambda item: (100 * len(item.hallucinated), len(item.found))),
        is_hallucination=True,
    ),
    Metric(
        "cover",
        Better.HIGHER,
        Unit.PERCENT,
        ratio(lambda item: (100 * len(item.covered), len(item.truth))),
        loss="lost coverage",
    ),
    Metric(
        "hal",
        Better.LOWER,
        Unit.PERCENT,
        ratio(lambda item: (100 * bool(item.hallucinated), 1)),
        is_hallucination=True,
    ),
    Metric("cog", Better.LOWER, Unit.PERCENT, ratio(lambda item: (100 * len(item.fallen_for), len(item.likely)))),
    Metric("mean_words", sums=ratio(lambda item: (item.words, 1)), loss="shorter captions"),
)


class Amber(Benchmark):
    """AMBER (arXiv 2311.07397)."""

    name = "amber"
    title = "AMBER"
    paper = "2311.07397"
    rules = scoring.PARSERS
    splits = scoring.SPLITS
    aggregates = tuple(scoring.AGGREGATES)
    max_new_tokens = 512
    files = ("similarity",)
    metrics = (*ANSWER_METRICS, *DESCRIPTION_METRICS)
    item_kinds = (AmberAnswerItem, AmberCaptionItem)

    def read_questions(
        self, data: Path, split: str | None, rule: str | None, files: Mapping[str, Path]
    ) -> tuple[Question, ...]:
        """Return the questions of a split, or all; see `scoring.load_questions`."""
        return scoring.load_questions(data, split, **files)

    def judge(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        *,
        split: str | None,
        rule: str | None,
        allow_missing: bool,
    ) -> Score:
        """Return the score of one split; see `scoring.score`."""
        return scoring.score(questions, answers, split=split, parser=rule, allow_missing=allow_missing)

    def load_answers(self, file: Path) -> tuple[Answer, ...]:
        """Return the answers of a file in AMBER's own format or the common one."""
        return scoring.load_answers(file)

    def splits_answered(self, questions: Sequence[Question], answers: Sequence[Answer]) -> tuple[str | None, ...]:
        """Return the dimensions of which something is answered, and the aggregates of which every dimension is."""
        return scoring.answered_splits(questions, answers)

    def metrics_of(self, items: Sequence[Item]) -> tuple[Metric, ...]:
        """Return those of answers or those of descriptions."""
        return ANSWER_METRICS if isinstance(items[0], AmberAnswerItem) else DESCRIPTION_METRICS
