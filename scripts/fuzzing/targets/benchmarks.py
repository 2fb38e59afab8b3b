"""Targets for the questions and answers of each benchmark."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar
from unittest.mock import patch

from fuzzing.benchmark_seeds import ANSWER_FILE, ANSWERS, QUESTIONS
from fuzzing.byte_strings import mutated
from fuzzing.json_trees import mutated_tree, written
from fuzzing.judging import attempt
from fuzzing.language import plain_where_missing
from fuzzing.sandbox import Sandbox
from fuzzing.target import Finding, Outcome, Target
from qkedit.evaluation.benchmarks.coco_caption import scoring as coco_caption
from qkedit.evaluation.benchmarks.registry import benchmark_named
from qkedit.evaluation.files.score_json import score_as_dict, score_from_dict
from qkedit.evaluation.runs.scoring import score_files


@dataclass(frozen=True)
class Given:
    """All input files of one score, one of them changed."""

    questions: dict[str, bytes]
    answers: bytes
    rule: str
    allow_missing: bool


class BenchmarkFiles(Target):
    """Scores changed files; a score must be JSON, and equal when it is read back."""

    benchmark: ClassVar[str]
    seeds: ClassVar[str] = ""  # the name of the seeds, if it is not the benchmark's
    seconds = 10.0

    def generate(self, random: Random) -> Given:
        """Change one of the files."""
        seeds = self.seeds or self.benchmark
        questions = {name: _plain(content) for name, content in QUESTIONS[seeds].items()}
        answers = _plain(ANSWERS[seeds])
        name = random.choice((None, *questions))
        if name is None:
            answers = _changed(ANSWERS[seeds], random)
        else:
            questions[name] = _changed(QUESTIONS[seeds][name], random)
        rule = random.choice(benchmark_named(self.benchmark).rules)
        return Given(questions, answers, rule, random.random() < 0.5)

    def check(self, given: Given) -> Outcome:
        """Score the files."""
        sandbox = Sandbox(self.work / "case")
        data, answers = sandbox.directory / "data", sandbox.directory / "answers"
        data.mkdir()
        answers.mkdir()
        for name, content in given.questions.items():
            (data / name).write_bytes(content)
        file = answers / ANSWER_FILE.get(self.benchmark, "answers.jsonl")
        file.write_bytes(given.answers)
        sandbox.remember()
        source = data / next(iter(given.questions)) if self.benchmark in ("custom", "choice") else data
        scores: list[Any] = []
        outcome = attempt(
            lambda: scores.extend(
                score_files(
                    benchmark_named(self.benchmark),
                    answers=file,
                    data=source,
                    rule=given.rule,
                    allow_missing=given.allow_missing,
                )
            )
        )
        sandbox.check()
        for score in scores:
            document = json.dumps(score_as_dict(score), allow_nan=False)
            if score_as_dict(score_from_dict(json.loads(document), "result")) != json.loads(document):
                raise Finding("oracle", "the score differs when it is read back")
        return outcome


def _plain(content: Any) -> bytes:
    if isinstance(content, list):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def _changed(content: Any, random: Random) -> bytes:
    if isinstance(content, str) or random.random() < 0.2:
        return mutated(_plain(content), random)
    tree = mutated_tree(content, random)
    if isinstance(tree, list) and random.random() < 0.5:
        return b"".join(written(row, random) + b"\n" for row in tree)
    return written(tree, random)


class Captions(BenchmarkFiles):
    """Scores captions, with nltk's data if they are installed, else with simple rules for words."""

    def prepare(self) -> None:
        """Replace missing language data."""
        self._language = plain_where_missing()

    def close(self) -> None:
        """Restore the language."""
        self._language.close()


class Pope(BenchmarkFiles):
    """POPE."""

    name = benchmark = "pope"
    subject = "questions and answers of POPE"


class Repope(BenchmarkFiles):
    """RePOPE."""

    name = benchmark = "repope"
    subject = "questions and answers of RePOPE"


class Chair(Captions):
    """CHAIR."""

    name = benchmark = "chair"
    subject = "truth, synonyms and captions of CHAIR"


class Mme(BenchmarkFiles):
    """MME."""

    name = benchmark = "mme"
    subject = "questions and answers of MME"


class Amber(Captions):
    """AMBER."""

    name = benchmark = "amber"
    subject = "annotations, queries, word lists and answers of AMBER"


class AmberYesNo(BenchmarkFiles):
    """AMBER's yes-no questions, which do not need nltk's data."""

    name = "amber-yes-no"
    benchmark = "amber"
    seeds = "amber-yes-no"
    subject = "annotations, queries and yes-no answers of AMBER"


class Hallusionbench(BenchmarkFiles):
    """HallusionBench."""

    name = benchmark = "hallusionbench"
    subject = "questions, answers and a judge's labels of HallusionBench"


class CocoCaption(BenchmarkFiles):
    """Captions of COCO's images, with a plain tokenizer: a Java program per case would take most of the time."""

    name = benchmark = "coco-caption"
    subject = "reference captions and answers of COCO's format"

    def prepare(self) -> None:
        """Replace the official tokenizer by words."""
        self._words = patch.dict(coco_caption.TOKENIZERS, official=coco_caption.TOKENIZERS["words"])
        self._words.start()

    def close(self) -> None:
        """Restore the tokenizer."""
        self._words.stop()


class Custom(BenchmarkFiles):
    """Custom questions."""

    name = benchmark = "custom"
    subject = "custom questions and answers"


class Choice(BenchmarkFiles):
    """Custom questions with choices."""

    name = benchmark = "choice"
    subject = "custom questions with choices, and answers"
