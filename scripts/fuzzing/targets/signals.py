"""Target for signals at random moments of a run."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzzing import seeds
from fuzzing.commands import judged
from fuzzing.sandbox import Sandbox
from fuzzing.target import Finding, Outcome, Target
from qkedit.steering.verify import verify
from tests.cli.command import Result, runs

INTERRUPTED = 130
LINES = (
    "steer base --layers all --k 2 --out out --device cpu",
    "steer base --layers all --k 2 --out out --device cpu --overwrite",
    "apply delta --base base --out out --no-fsync",
)


@dataclass(frozen=True)
class Given:
    """A run, and its signals with their seconds after the start."""

    line: str
    signals: tuple[tuple[signal.Signals, float], ...]


class Signals(Target):
    """Sends signals to a run: its output is complete or absent. Only SIGKILL may leave staging for the next run."""

    name = "signals"
    subject = "SIGKILL, SIGTERM, SIGINT and SIGHUP at random moments of steer and apply, one or two of them"
    seconds = 60.0

    def prepare(self) -> None:
        """Build a base and a delta, and start the process whose children get the signals."""
        self.base = seeds.checkpoint(self.work / "base")
        seeds.steer(self.base, self.work / "delta", "delta")
        self._start()

    def _start(self) -> None:
        self._stack = ExitStack()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("QKEDIT_")}
        self._children = self._stack.enter_context(runs(self.work, {**kept, "OMP_NUM_THREADS": "1"}))

    def close(self) -> None:
        """End the process."""
        self._stack.close()

    def generate(self, random: Random) -> Given:
        """Choose signals and moments."""
        kinds = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        count = random.choice((1, 1, 2))
        sent = tuple(
            (random.choice(kinds), random.choice((0.0, 0.05, 0.2, 0.4)) * random.random()) for _ in range(count)
        )
        return Given(random.choice(LINES), sent)

    def check(self, given: Given) -> Outcome:
        """Run, send the signals, and run once more."""
        sandbox = Sandbox(self.work / "case")
        for name in ("base", "delta"):
            (sandbox.directory / name).symlink_to(self.work / name)
        out = sandbox.directory / "out"
        sandbox.remember()
        words = self._words(given.line, sandbox.directory)
        result = self._ended(words, given.signals)
        # Before Python has installed its handlers, the system ends the process at once.
        ended = result.code in (-number for number, _ in given.signals)
        if not ended:
            outcome = judged(result, codes=(0, INTERRUPTED))
            sandbox.check(out)
            # After the rename, the output is in place.
            if outcome is Outcome.ACCEPTED and not out.exists():
                raise Finding("partial", "exit code 0, but there is no output")
        if out.exists():
            self._verify(out)
        again = self._ended([*words, *(["--overwrite"] if out.exists() and "--overwrite" not in words else [])])
        if again.code != 0:
            raise Finding("partial", f"the next run fails: {again.stderr[-400:]!a}")
        sandbox.check(out)
        self._verify(out)
        return Outcome.REFUSED if ended or result.code else Outcome.ACCEPTED

    def _ended(self, words: list[str], signals: tuple[tuple[signal.Signals, float], ...] = ()) -> Result:
        """Run a command, send it signals, and return its result."""
        try:
            self._children.start(*words)
            for number, pause in signals:
                time.sleep(pause)
                self._children.signal(number)
            return self._children.finish()
        except BaseException:
            self._children.abandon()
            self.close()
            self._start()
            raise

    def _words(self, line: str, directory: Path) -> list[str]:
        return [str(directory / word) if word in ("base", "delta", "out") else word for word in line.split(" ")]

    def _verify(self, out: Path) -> None:
        if mismatches := verify(out, base=str(self.base)).mismatches:
            raise Finding("partial", f"the target does not verify: {mismatches[:3]!a}")
