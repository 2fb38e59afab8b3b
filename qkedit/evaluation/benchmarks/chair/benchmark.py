"""CHAIR as a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qkedit.evaluation.benchmarks.benchmark import Benchmark
from qkedit.evaluation.benchmarks.chair import scoring
from qkedit.evaluation.benchmarks.chair.metrics import METRICS
from qkedit.evaluation.files.records import Answer, CaptionItem, Question, Score


class Chair(Benchmark):
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

    def read_questions(
        self, data: Path, split: str | None, rule: str | None, files: Mapping[str, Path]
    ) -> tuple[Question, ...]:
        """Return one question for each image whose objects are known; see `scoring.load_questions`."""
        return scoring.load_questions(data, split, variant=rule or self.rules[0], **files)

    def judge(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        *,
        split: str | None,
        rule: str | None,
        allow_missing: bool,
    ) -> Score:
        """Return the score of captions; see `scoring.score`."""
        return scoring.score(questions, answers, split=split, variant=rule, allow_missing=allow_missing)

    def load_answers(self, file: Path) -> tuple[Answer, ...]:
        """Return captions in CHAIR's own format or the common one."""
        return scoring.load_answers(file)

    def takes_shown_images(self, split: str | None) -> bool:
        """Without a split, the truth is that of all of COCO."""
        return split is None
