"""AMBER as a benchmark. Its positive class is `no`, and its figures are percentages, as its own script prints them."""

from __future__ import annotations

from collections.abc import Sequence

from qkedit.evaluation.benchmarks.amber import scoring
from qkedit.evaluation.benchmarks.plain_functions import BenchmarkOfFunctions, Functions
from qkedit.evaluation.files.records import AmberAnswerItem, AmberCaptionItem, Answer, Item, Question
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


class Amber(BenchmarkOfFunctions):
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
    functions = Functions(scoring.load_questions, scoring.score, scoring.load_answers)

    def splits_answered(self, questions: Sequence[Question], answers: Sequence[Answer]) -> tuple[str | None, ...]:
        """Return the dimensions with any answers, and the aggregates whose dimensions all have answers."""
        return scoring.answered_splits(questions, answers)

    def metrics_of(self, items: Sequence[Item]) -> tuple[Metric, ...]:
        """Return the metrics of answers or those of descriptions."""
        return ANSWER_METRICS if isinstance(items[0], AmberAnswerItem) else DESCRIPTION_METRICS
