"""Target for the index of a sharded checkpoint."""

from __future__ import annotations

import json
from random import Random

from fuzzing import seeds
from fuzzing.json_trees import mutated_json
from fuzzing.steered import ChangedFile, SteeredTarget


class Index(SteeredTarget):
    """Steers a checkpoint with a changed index."""

    name = "index"
    subject = "model.safetensors.index.json"
    share_of_runs = 0.2

    def generate(self, random: Random) -> ChangedFile:
        """Change the JSON."""
        index = json.loads((self.seed / seeds.INDEX).read_bytes())
        return self.changed(seeds.INDEX, mutated_json(index, random), random)
