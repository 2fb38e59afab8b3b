"""Target for the model card of a base, whose front matter becomes part of the output's card."""

from __future__ import annotations

from random import Random

from fuzzing.byte_strings import mutated
from fuzzing.steered import ChangedFile, SteeredTarget
from fuzzing.yaml_texts import yaml_text

SEED = """license: apache-2.0
license_name: own
language:
- en
- de
tags:
- vision
pipeline_tag: image-text-to-text
library_name: transformers
base_model: org/model
"""


class Card(SteeredTarget):
    """Steers a checkpoint with a changed README.md."""

    name = "card"
    subject = "the front matter of a base's README.md: YAML with aliases, merges, dates, any type in any field"

    def generate(self, random: Random) -> ChangedFile:
        """Return a card with generated front matter, or with changed bytes."""
        content = f"---\n{yaml_text(SEED, random)}\n---\n\n# Card\n".encode("utf-8", "surrogatepass")
        return self.changed("README.md", mutated(content, random) if random.random() < 0.2 else content, random)
