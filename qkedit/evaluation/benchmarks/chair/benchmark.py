"""CHAIR as a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qkedit.evaluation.benchmarks.chair import scoring
from qkedit.evaluation.benchmarks.chair.metrics import METRICS
from qkedit.evaluation.benchmarks.plain_functions import BenchmarkOfFunctions, Functions
from qkedit.evaluation.files.records import CaptionItem, Question


class Chair(BenchmarkOfFunctions):
    """CHAIR (arXiv 1809.02156)."""

    name = "chair"
    title = "CHAIR"
    paper = "1809.02156"
    rules = ("official", "wordnet")
    rule_kind = "variant"
    max_new_tokens = 512
    files = ("cache_ground_truth",)
    metrics = METRICS
    item_kinds = (CaptionItem,)
    functions = Functions(scoring.load_questions, scoring.score, scoring.load_answers)

    def read_questions(
        self, data: Path, split: str | None, rule: str | None, files: Mapping[str, Path]
    ) -> tuple[Question, ...]:
        """Return one question for each image whose objects are known; see `scoring.load_questions`."""
        return scoring.load_questions(data, split, variant=rule or self.rules[0], **files)

    def takes_shown_images(self, split: str | None) -> bool:
        """Return whether no split is named: the truth then covers all of COCO."""
        return split is None
