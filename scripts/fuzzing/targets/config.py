"""Target for a model's configuration."""

from __future__ import annotations

import json
from random import Random

from fuzzing import seeds
from fuzzing.json_trees import mutated_json, mutated_tree, written
from fuzzing.steered import ChangedFile, SteeredTarget
from fuzzing.strange import strange_value

# The keys that an edit depends on; the others are only copied.
READ = (
    "model_type",
    "architectures",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "quantization_config",
    "text_config",
    "rope_scaling",
)


class Config(SteeredTarget):
    """Steers a checkpoint with a changed config.json."""

    name = "config"
    subject = "config.json, flat and with a part for the language model"
    share_of_runs = 0.3

    def generate(self, random: Random) -> ChangedFile:
        """Change the keys that are read, or any part."""
        config = json.loads((self.seed / seeds.CONFIG).read_bytes())
        if random.random() < 0.3:
            config = {"model_type": config["model_type"], "text_config": config}
        if random.random() < 0.4:
            return self.changed(seeds.CONFIG, mutated_json(config, random), random)
        config[random.choice(READ)] = strange_value(random)
        return self.changed(seeds.CONFIG, written(mutated_tree(config, random), random), random)
