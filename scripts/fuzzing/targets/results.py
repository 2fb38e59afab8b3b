"""Target for result files, which `compare` and `gate` read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzzing.benchmark_seeds import ANSWERS, QUESTIONS
from fuzzing.commands import command
from fuzzing.json_trees import mutated_json
from fuzzing.sandbox import Sandbox
from fuzzing.target import Outcome, Target
from tests.cli.command import qkedit


@dataclass(frozen=True)
class Given:
    """A result file, and the command that reads it."""

    command: str
    content: bytes


class Results(Target):
    """Compares a changed result file with the original one, and gates it."""

    name = "results"
    subject = "result files, of `score`, given to `compare` and `gate`"

    def prepare(self) -> None:
        """Score a few answers."""
        self.work.mkdir(exist_ok=True)
        rows = {"questions.json": QUESTIONS["pope"]["coco_pope_random.json"], "answers.jsonl": ANSWERS["pope"]}
        for name, content in rows.items():
            (self.work / name).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        scored = qkedit(
            "score", "pope", "--answers", self.work / "answers.jsonl", "--questions", self.work / "questions.json",
            "--split", "random", "--json",
        )  # fmt: skip
        self._whole = self.work / "whole.json"
        self._whole.write_text(scored.stdout, encoding="utf-8")
        self._document = scored.document

    def generate(self, random: Random) -> Given:
        """Change the JSON."""
        return Given(random.choice(("compare", "compare", "gate", "no-worse")), mutated_json(self._document, random))

    def check(self, given: Given) -> Outcome:
        """Run the command."""
        sandbox = Sandbox(self.work / "case")
        file, table = sandbox.directory / "result.json", sandbox.directory / "table.md"
        file.write_bytes(given.content)
        sandbox.remember()
        outcome = command(*self._words(given.command, file, table))
        sandbox.check(table)
        return outcome

    def _words(self, name: str, file: Path, table: Path) -> tuple[str | Path, ...]:
        if name == "compare":
            return "compare", self._whole, file, "--markdown", table
        if name == "gate":
            return "gate", file, "--require", "f1>=0.5"
        return "gate", file, "--baseline", self._whole, "--no-worse", "f1:0.1"
