"""The benchmarks by name, each a module of this package that is imported when it is used.

A module has `load_questions(data, split)` and `score(questions, answers, *, split, parser or variant, allow_missing)`,
the names of its splits as SPLITS where they are fixed and `load_answers(file)` where answers come in a format of its
own. One whose splits are files with ids of their own also has `splits_in(data)`; one that scores each part of one set
of questions by itself has `answered_splits(questions, answers)`, and TOTALS where parts are made up of others.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.files.answer_files import read_answers
from qkedit.evaluation.files.records import Answer, Question, Score

# Benchmarks whose rules need a folder of their own.
_MODULES = {"chair": "chair.scoring", "amber": "amber.scoring"}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: as the command line and JSON have it.
        title: as its paper has it.
        paper: its arXiv number; empty for the user's own questions.
        rules: parsers or variants, the default first.
        rule_kind: `parser` or `variant`.
        numbered_apart: whether ids begin anew in each split, so that only its name tells whose answers they are.
        max_new_tokens: how long an answer may be; as published for captions, ample for yes and no elsewhere.
        files: further files its `load_questions` takes, by the names of its arguments.
    """

    name: str
    title: str
    paper: str
    rules: tuple[str, ...]
    rule_kind: str = "parser"
    numbered_apart: bool = False
    max_new_tokens: int = 128
    files: tuple[str, ...] = ()

    @property
    def module(self) -> ModuleType:
        """Where its rules are written."""
        return import_module(f"qkedit.evaluation.benchmarks.{_MODULES.get(self.name, self.name)}")

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits there are; none where the user may call one anything."""
        return tuple(getattr(self.module, "SPLITS", ()))

    @property
    def totals(self) -> tuple[str, ...]:
        """Those of the splits that are made up of others."""
        return tuple(getattr(self.module, "TOTALS", ()))

    @property
    def is_in_parts(self) -> bool:
        """Whether all splits are parts of one set of questions, so that an id alone tells whose answer it is."""
        return bool(self.splits) and not self.numbered_apart

    def load_questions(
        self, data: Path, split: str | None = None, rule: str | None = None, files: Mapping[str, Path] | None = None
    ) -> tuple[Question, ...]:
        """Return a split's questions, or (None) all of a benchmark whose splits are parts of one set.

        Args:
            data: the directory with the published files, or one such file.
            split: one of its splits.
            rule: the parser or variant they will be scored by, which decides about CHAIR's truth where that is built.
            files: further files, such as AMBER's table of similar words.

        Raises:
            QkeditError: there is no such split or rule, a file is missing, or what it holds are no questions.
        """
        self.check_rule(rule)
        keywords: dict[str, object] = dict(files or {})
        for name in keywords:
            if name not in self.files:
                raise UsageError(f"{self.title} has no use for it", where=f"--{name.replace('_', '-')}")
        if self.rule_kind == "variant" and rule is not None:
            keywords["variant"] = rule
        return self.module.load_questions(data, split, **keywords)

    def splits_in(self, data: Path) -> tuple[str | None, ...]:
        """Return the splits to ask one after another so that all questions below `data` are asked.

        Raises:
            QkeditError: there are no questions of a benchmark that comes in one file a split.
        """
        if not self.numbered_apart or data.is_file():
            return (None,)
        splits: tuple[str, ...] = self.module.splits_in(data)
        if not splits:
            # Its error names the file and says where it is published.
            self.load_questions(data, self.splits[0])
        return splits

    def load_answers(self, file: Path) -> tuple[Answer, ...]:
        """Return the answers of a file in the benchmark's own format or in the common one. Raises QkeditError."""
        load = getattr(self.module, "load_answers", read_answers)
        return load(file)

    def answered_splits(
        self, questions: Sequence[Question], answers: Sequence[Answer], split: str | None = None
    ) -> tuple[str | None, ...]:
        """Return the splits to score: the one that is named, else those parts of the questions that are answered.

        Raises:
            QkeditError: nothing is answered.
        """
        if split is not None or not hasattr(self.module, "answered_splits"):
            return (split,)
        splits: tuple[str, ...] = self.module.answered_splits(questions, answers)
        if not splits:
            raise QkeditError(
                f"holds no answer to any question of {self.title}",
                where=next((answer.file for answer in answers if answer.file), "answers"),
                remedy="name the answers to this benchmark",
            )
        return splits

    def score(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        *,
        split: str | None = None,
        rule: str | None = None,
        allow_missing: bool = False,
    ) -> Score:
        """Return the score of one split by a parser or variant, by default the first. Raises QkeditError."""
        self.check_rule(rule)
        keywords = {} if rule is None else {self.rule_kind: rule}
        return self.module.score(questions, answers, split=split, allow_missing=allow_missing, **keywords)

    def scores(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        *,
        split: str | None = None,
        rule: str | None = None,
        allow_missing: bool = False,
    ) -> tuple[Score, ...]:
        """Return the score of one split, or (None) of each that is scored by itself. Raises QkeditError."""
        return tuple(
            self.score(questions, answers, split=part, rule=rule, allow_missing=allow_missing)
            for part in self.answered_splits(questions, answers, split)
        )

    def check_rule(self, rule: str | None) -> None:
        """Raise UsageError when there is no such parser or variant."""
        if rule is not None and rule not in self.rules:
            raise UsageError(
                f"{self.title} has no {self.rule_kind} {rule!r}",
                where=f"--{self.rule_kind}",
                remedy=_choose(rule, self.rules),
            )


_YES_NO = ("official", "vcd", "opera", "repope")
BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("pope", "POPE", "2305.10355", _YES_NO, numbered_apart=True),
        Benchmark("repope", "RePOPE", "2504.15707", ("repope", "official", "vcd", "opera"), numbered_apart=True),
        Benchmark(
            "chair",
            "CHAIR",
            "1809.02156",
            ("official", "wordnet"),
            "variant",
            max_new_tokens=512,
            files=("write_truth",),
        ),
        Benchmark("mme", "MME", "2306.13394", ("official",)),
        Benchmark(
            "amber", "AMBER", "2311.07397", ("official", "normalised"), max_new_tokens=512, files=("similarity",)
        ),
        Benchmark("hallusionbench", "HallusionBench", "2310.14566", ("judge", "string")),
        Benchmark("custom", "custom questions", "", _YES_NO, max_new_tokens=512),
    )
}


def benchmark_named(name: str) -> Benchmark:
    """Return a benchmark. Raises UsageError when there is none of that name."""
    if name not in BENCHMARKS:
        raise UsageError(f"there is no benchmark {name!r}", remedy=_choose(name, tuple(BENCHMARKS)))
    return BENCHMARKS[name]


def _choose(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given.lower(), known, n=1)
    return f"did you mean {near[0]!r}" if near else f"choose among {', '.join(known)}"
