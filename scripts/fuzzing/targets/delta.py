"""Target for the tensors of a delta."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import seeds
from fuzzing.byte_strings import mutated
from fuzzing.judging import attempt
from fuzzing.sandbox import Sandbox
from fuzzing.steered import check_output
from fuzzing.target import Finding, Outcome, Target
from qkedit.steering.apply import apply_edits
from qkedit.steering.manifest import DELTA_FILE
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.verify import verify


class Delta(Target):
    """Applies a changed delta, which must be refused, or have an output that verifies."""

    name = "delta"
    subject = "the tensors of a delta: headers, values, length"

    def prepare(self) -> None:
        """Build a delta."""
        self.base = seeds.checkpoint(self.work / "base")
        self.delta = seeds.steer(self.base, self.work / "delta", "delta")

    def generate(self, random: Random) -> bytes:
        """Change bytes, in half of the inputs those of the header."""
        content = (self.delta / DELTA_FILE).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        if random.random() < 0.5:
            return mutated(content[:end], random) + content[end:]
        return mutated(content, random)

    def check(self, given: bytes) -> Outcome:
        """Apply the delta, and verify it."""
        sandbox = Sandbox(self.work / "case")
        delta, out = sandbox.directory / "delta", sandbox.directory / "out"
        shutil.copytree(self.delta, delta)
        (delta / DELTA_FILE).write_bytes(given)
        sandbox.remember()
        outcome = attempt(lambda: self._apply(delta, out))
        check_output(sandbox, out, outcome, lambda: self._verify(out))
        attempt(lambda: verify(delta, base=str(self.base)))
        return outcome

    def _apply(self, delta: Path, out: Path) -> Any:
        return apply_edits([delta], base=str(self.base), output=OutputOptions(out, fsync=False))

    def _verify(self, out: Path) -> None:
        if mismatches := verify(out, base=str(self.base)).mismatches:
            raise Finding("partial", f"the output does not verify: {mismatches[:3]!a}")
