"""Target for the grammar of `--plugin` and of the words of `plugins add`."""

from __future__ import annotations

import shlex
from random import Random

from fuzzing.byte_strings import mutated_text
from fuzzing.judging import attempt
from fuzzing.target import Outcome, Target
from qkedit.plugins.settings import make_plugins, parse_words

SEEDS = (
    "scr:layers=0-11,strength=0.5",
    "scr --layers 0-11",
    "dscr:depth=a.npy,blend=0.5",
    "scr dscr --depth street.npy",
    "scr:layers=3,5,8-12",
)


class PluginWords(Target):
    """Parses words and creates the plug-ins that they name."""

    name = "plugin-words"
    subject = "`--plugin NAME:key=value` and the words of `plugins add`"
    seconds = 5.0

    def prepare(self) -> None:
        """Import the modules of the plug-ins: torch takes seconds, and a run may be limited to a few."""
        import qkedit

        _ = (qkedit.SCR, qkedit.DSCR)

    def generate(self, random: Random) -> str:
        """Change a valid text."""
        return mutated_text(random.choice(SEEDS), random)

    def check(self, given: str) -> Outcome:
        """Parse the text, split as by a shell if it can be."""
        try:
            words = shlex.split(given)
        except ValueError:
            words = given.split()
        return attempt(lambda: make_plugins(parse_words(words)))
