"""Target for the grammar of layers and heads."""

from __future__ import annotations

from random import Random

from fuzzing.byte_strings import mutated_text
from fuzzing.judging import attempt
from fuzzing.target import Finding, Outcome, Target
from qkedit.selection import check_layers, select_heads, select_layers

SEEDS = ("10-20", "3,5,8-12", "all", "mid", "0.35-0.7", "0", "0-27", ".5-1.", "1-2, mid")
LAYERS = 28


class Layers(Target):
    """Parses layer lists; accepted layers must be in the model, in ascending order."""

    name = "layers"
    subject = "the grammar of `--layers` and `--heads`"
    seconds = 2.0

    def generate(self, random: Random) -> str:
        """Change a valid text."""
        return mutated_text(random.choice(SEEDS), random)

    def check(self, given: str) -> Outcome:
        """Parse the text as layers, as heads, and without a model."""
        attempt(lambda: check_layers(given))
        for select in (select_layers, select_heads):
            chosen: list[int] = []
            outcome = attempt(lambda select=select, chosen=chosen: chosen.extend(select(given, LAYERS)))
            if outcome is Outcome.ACCEPTED and (not chosen or chosen != sorted(set(chosen)) or chosen[-1] >= LAYERS):
                raise Finding("oracle", f"{chosen} of {LAYERS}")
        return outcome
