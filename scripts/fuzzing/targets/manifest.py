"""Target for qkedit.json of an output, which `verify`, `apply`, and `steer` of a steered model read."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import seeds
from fuzzing.json_trees import mutated_json
from fuzzing.judging import attempt
from fuzzing.sandbox import Sandbox
from fuzzing.steered import check_output
from fuzzing.target import Finding, Outcome, Target
from qkedit.steering.apply import apply_edits
from qkedit.steering.manifest import MANIFEST_FILE
from qkedit.steering.plan import plan_for
from qkedit.steering.run import run_plan
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.verify import verify


@dataclass(frozen=True)
class Given:
    """A manifest, and the command that reads it."""

    action: str
    content: bytes


class Manifest(Target):
    """Reads manifests of full outputs and of deltas."""

    name = "manifest"
    subject = "qkedit.json, the manifest of an output or a delta"

    def prepare(self) -> None:
        """Build an output and a delta."""
        self.base = seeds.checkpoint(self.work / "base")
        self.full = seeds.steer(self.base, self.work / "full")
        self.delta = seeds.steer(self.base, self.work / "delta", "delta")

    def generate(self, random: Random) -> Given:
        """Change the JSON."""
        action = random.choice(("verify", "verify alone", "steer", "apply"))
        manifest = json.loads((self.full / MANIFEST_FILE).read_bytes())
        return Given(action, mutated_json(manifest, random))

    def check(self, given: Given) -> Outcome:
        """Run the command of the input."""
        sandbox = Sandbox(self.work / "case")
        edited, out = sandbox.directory / "edited", sandbox.directory / "out"
        shutil.copytree(self.delta if given.action == "apply" else self.full, edited)
        (edited / MANIFEST_FILE).write_bytes(given.content)
        sandbox.remember()
        outcome = attempt(lambda: self._act(given.action, edited, out))
        wrote = given.action in ("steer", "apply")
        check_output(sandbox, out, outcome if wrote else Outcome.REFUSED, lambda: self._verify(given, edited, out))
        return outcome

    def _act(self, action: str, edited: Path, out: Path) -> Any:
        base, output = str(self.base), OutputOptions(out, fsync=False)
        if action == "steer":
            return run_plan(plan_for(str(edited), seeds.OPTIONS), output)
        if action == "apply":
            return apply_edits([edited], base=base, output=output)
        verification = verify(edited, base=base if action == "verify" else None)
        return json.dumps(verification.as_dict(), allow_nan=False)

    def _verify(self, given: Given, edited: Path, out: Path) -> None:
        base = self.base if given.action == "apply" else edited
        mismatches = verify(out, base=str(base)).mismatches
        if given.action == "steer" and mismatches:
            raise Finding("partial", f"the output does not verify: {mismatches[:3]!a}")
