"""Target for `--config FILE`: settings of a command in YAML."""

from __future__ import annotations

from random import Random

from fuzzing import seeds
from fuzzing.byte_strings import mutated
from fuzzing.commands import command
from fuzzing.sandbox import Sandbox
from fuzzing.target import Outcome, Target
from fuzzing.yaml_texts import yaml_text

SEED = """layers: 0-1
heads: all
k: 2
retain: 0.1
channel: full
control: none
seed: 3
device: cpu
compute-dtype: float32
allow-text-only: true
dry-run: yes
json: false
"""


class SettingsFile(Target):
    """Plans with a settings file; nothing is written."""

    name = "settings-file"
    subject = "`--config FILE`: YAML with any value for any option"

    def prepare(self) -> None:
        """Build a checkpoint."""
        self.seed = seeds.checkpoint(self.work / "seed")

    def generate(self, random: Random) -> bytes:
        """Change the YAML."""
        content = yaml_text(SEED, random).encode("utf-8", "surrogatepass")
        return mutated(content, random) if random.random() < 0.2 else content

    def check(self, given: bytes) -> Outcome:
        """Run `qkedit steer --dry-run` with the file."""
        sandbox = Sandbox(self.work / "case")
        file = sandbox.directory / "settings.yaml"
        file.write_bytes(given)
        sandbox.remember()
        outcome = command("steer", self.seed, "--dry-run", "--config", file)
        sandbox.check()
        return outcome
