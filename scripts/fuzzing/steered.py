"""The common base of targets that change one file of a checkpoint and steer it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from fuzzing import seeds
from fuzzing.judging import attempt
from fuzzing.sandbox import Sandbox
from fuzzing.target import Finding, Outcome, Target
from qkedit.steering.plan import plan_for
from qkedit.steering.run import run_plan
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.verify import verify


@dataclass(frozen=True)
class ChangedFile:
    """A file of a checkpoint with new content; `whole` is whether the run goes beyond the plan."""

    name: str
    content: bytes
    whole: bool = True


class SteeredTarget(Target):
    """Steer a checkpoint with one changed file.

    A run that succeeds must have an output that verifies; a refused one must leave nothing.
    """

    # The share of inputs that are only planned, like `--dry-run`, which is faster.
    share_of_runs: ClassVar[float] = 1.0

    def prepare(self) -> None:
        """Build the checkpoint."""
        self.seed = seeds.checkpoint(self.work / "seed")

    def changed(self, name: str, content: bytes, random: Random) -> ChangedFile:
        """Return a file to try."""
        return ChangedFile(name, content, random.random() < self.share_of_runs)

    def check(self, given: ChangedFile) -> Outcome:
        """Plan, and run if the input says so."""
        sandbox = Sandbox(self.work / "case")
        base, out = sandbox.directory / "base", sandbox.directory / "out"
        shutil.copytree(self.seed, base)
        (base / given.name).write_bytes(given.content)
        sandbox.remember()
        outcome = attempt(lambda: self.act(base, out) if given.whole else plan_for(str(base), seeds.OPTIONS).as_dict())
        check_output(sandbox, out, outcome if given.whole else Outcome.REFUSED, lambda: self.verify(base, out))
        return outcome

    def act(self, base: Path, out: Path) -> Any:
        """Run the command that may be refused."""
        return run_plan(plan_for(str(base), seeds.OPTIONS), OutputOptions(out, fsync=False))

    def verify(self, base: Path, out: Path) -> None:
        """Raise an exception if the output is not complete and correct."""
        if mismatches := verify(out, base=str(base)).mismatches:
            raise Finding("partial", f"the output does not verify: {mismatches[:3]!a}")


def check_output(sandbox: Sandbox, out: Path, outcome: Outcome, verified: Callable[[], None]) -> None:
    """Raise Finding unless an output is complete after success, and absent after a refusal."""
    sandbox.check(out)
    if outcome is Outcome.ACCEPTED:
        verified()
    elif out.exists():
        raise Finding(
            "partial", f"refused, but the target is there with {sorted(path.name for path in out.iterdir())[:5]}"
        )
