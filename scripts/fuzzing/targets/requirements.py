"""Target for `--require` and `--no-worse` of a gate."""

from __future__ import annotations

from random import Random

from fuzzing.byte_strings import mutated_text
from fuzzing.judging import attempt
from fuzzing.target import Outcome, Target
from qkedit.evaluation.files.result_files import Measured
from qkedit.evaluation.statistics.gate import gate, parse_requirement
from qkedit.evaluation.statistics.guard import parse_guard

SEEDS = ("chair_s<=0.40", "pope.random.f1>=0.80", "f1>0.5", "recall:0.02", "pope.f1:.1", "mean_words>=80e0")
MEASURED = (Measured("pope", "random", {"f1": 0.8, "recall": 0.7, "accuracy": None}, "official"),)


class Requirements(Target):
    """Parses requirements and checks a result against them."""

    name = "requirements"
    subject = "requirements of `gate`: metric, comparison, number, tolerance"
    seconds = 2.0

    def generate(self, random: Random) -> str:
        """Change a valid text."""
        return mutated_text(random.choice(SEEDS), random)

    def check(self, given: str) -> Outcome:
        """Parse the text as both."""
        first = attempt(lambda: gate(MEASURED, [parse_requirement(given)]))
        second = attempt(lambda: gate(MEASURED, (), [parse_guard(given)], MEASURED))
        return Outcome.ACCEPTED if Outcome.ACCEPTED in (first, second) else Outcome.REFUSED
