"""COCO's caption scores as a benchmark: they measure the quality of answers after an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qkedit.evaluation.benchmarks.captions.coco import load_answers
from qkedit.evaluation.benchmarks.coco_caption import scoring
from qkedit.evaluation.benchmarks.plain_functions import BenchmarkOfFunctions, Functions
from qkedit.evaluation.files.records import Answer, Item, MeasuredItem, Question, Score
from qkedit.evaluation.metric import Metric


class CocoCaption(BenchmarkOfFunctions):
    """COCO's caption scores (arXiv 1504.00325), as pycocoevalcap computes them."""

    name = scoring.NAME
    title = "COCO captions"
    paper = "1504.00325"
    rules = tuple(scoring.TOKENIZERS)
    rule_kind = "variant"
    max_new_tokens = 64
    optional_metrics = ("meteor", "spice")
    metrics = scoring.METRICS
    item_kinds = (MeasuredItem,)
    functions = Functions(scoring.load_questions, scoring.score, load_answers)

    def judge(self, questions: Sequence[Question], answers: Sequence[Answer], **how: Any) -> Score:
        """Return the score of captions, with METEOR and SPICE if they are requested."""
        return scoring.score(questions, answers, **how, also=self.also)

    def metrics_of(self, items: Sequence[Item]) -> tuple[Metric, ...]:
        """Return the metrics that all items have; see `scoring.metrics_of`."""
        return scoring.metrics_of([item for item in items if isinstance(item, MeasuredItem)])

    def takes_shown_images(self, split: str | None) -> bool:
        """Return whether no split is named: the references then cover all of COCO."""
        return split is None
