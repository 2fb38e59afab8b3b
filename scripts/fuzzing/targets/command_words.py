"""Target for command lines: invalid values and options, in every command that does not need a network."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from random import Random

from fuzzing import seeds
from fuzzing.byte_strings import mutated_text
from fuzzing.commands import command, in_directory
from fuzzing.sandbox import Sandbox
from fuzzing.strange import NUMBERS, strange_text
from fuzzing.target import Outcome, Target

LINES = (
    "steer base --dry-run --layers 0-1 --k 2 --retain 0.1 --channel full --control none --seed 1",
    "steer base --dry-run --energy 0.5 --heads 0,1 --device cpu --compute-dtype float64",
    "inspect base --layers 0-1",
    "inspect base --csv out --html page.html",
    "verify edited --base base",
    "diff base edited",
    "apply delta --base base --out out --link copy",
    "plugins list base",
    "plugins add scr --model base --layers 0-1",
    "plugins remove --model base",
    "attach scr --model base",
    "models llava",
    "score custom --answers a --questions q --parser official",
    "compare a b --markdown out.md",
    "gate a --require f1>=0.5 --baseline b --no-worse f1:0.1",
)


@dataclass(frozen=True)
class Words:
    """The arguments of one run."""

    words: tuple[str, ...]


class CommandWords(Target):
    """Runs commands with one or two words changed."""

    name = "command-words"
    subject = "command lines: unknown options, values of other kinds, names that cannot be"

    def prepare(self) -> None:
        """Build a base, an output and a delta, which the commands use."""
        base = seeds.checkpoint(self.work / "base")
        seeds.steer(base, self.work / "edited")
        seeds.steer(base, self.work / "delta", "delta")

    def generate(self, random: Random) -> Words:
        """Return a command with words changed, dropped, doubled or added."""
        words = random.choice(LINES).split(" ")
        for _ in range(random.choice((1, 1, 2))):
            at = random.randrange(1, len(words))
            kind = random.randrange(6)
            if kind == 0:
                words[at] = strange_text(random)
            elif kind == 1:
                words[at] = str(random.choice(NUMBERS))
            elif kind == 2:
                words[at] = mutated_text(words[at], random)
            elif kind == 3 and len(words) > 2:
                del words[at]
            elif kind == 4:
                words.insert(at, random.choice(("--json", "--quiet", "--", "-h", "--k", "--out", "-", "--config")))
            else:
                words.insert(at, words[at])
        # The system accepts neither null bytes nor very long arguments.
        return Words(tuple(word.replace("\0", "")[:100_000] for word in words))

    def check(self, given: Words) -> Outcome:
        """Run the command in a directory with copies of the files that it names."""
        sandbox = Sandbox(self.work / "case")
        for name in ("base", "edited", "delta"):
            shutil.copytree(self.work / name, sandbox.directory / name)
        return in_directory(sandbox.directory, lambda: command(*given.words))
