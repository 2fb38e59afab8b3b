"""Target for files next to the weights that steering does not read and must copy byte for byte."""

from __future__ import annotations

from random import Random

from fuzzing.byte_strings import mutated
from fuzzing.steered import ChangedFile, SteeredTarget
from fuzzing.target import Finding, Outcome

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "merges.txt",
    "modeling_own.py",
    "._model.safetensors",
    "notes with spaces.txt",
    "\N{LATIN SMALL LETTER U WITH DIAERESIS}.txt",
    "model.safetensors.index.json.bak",
    "params.json",
)


class SideFiles(SteeredTarget):
    """Steers a checkpoint with a file that steering does not read."""

    name = "side-files"
    subject = "tokenizer, processor, template and other files next to the weights: they are copied byte for byte"

    def generate(self, random: Random) -> ChangedFile:
        """Return a file with random bytes."""
        content = b'{"version": "1.0", "added_tokens": []}'
        content = mutated(content, random) if random.random() < 0.7 else random.randbytes(random.randrange(3000))
        return ChangedFile(random.choice(NAMES), content)

    def check(self, given: ChangedFile) -> Outcome:
        """Compare the copy, unless files of this name are not copied."""
        outcome = super().check(given)
        copy = self.work / "case" / "out" / given.name
        if outcome is Outcome.ACCEPTED and copy.exists() and copy.read_bytes() != given.content:
            raise Finding("partial", "the copy differs")
        return outcome
