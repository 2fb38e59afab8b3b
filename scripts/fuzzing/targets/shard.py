"""Target for whole safetensors files: NaN values, moved headers, truncated files."""

from __future__ import annotations

from random import Random

from fuzzing.byte_strings import mutated
from fuzzing.steered import ChangedFile, SteeredTarget


class Shard(SteeredTarget):
    """Steers a checkpoint with a changed shard."""

    name = "shard"
    subject = "bytes of safetensors files, weights with NaN and infinity among them"

    def generate(self, random: Random) -> ChangedFile:
        """Change bytes anywhere, or overwrite weights with extreme bfloat16 values."""
        shard = random.choice(sorted(self.seed.glob("*.safetensors")))
        content = shard.read_bytes()
        if random.random() < 0.5:
            return self.changed(shard.name, mutated(content, random), random)
        data = bytearray(content)
        value = random.choice((b"\x80\x7f", b"\xc0\xff", b"\x7f\x7f", b"\x01\0", b"\0\x80", b"\0\0"))
        length = 2 * random.choice((1, 1, 100, 5000, 100_000))
        start = 8 + int.from_bytes(content[:8], "little")
        at = min(start + 2 * random.randrange((len(data) - start) // 2), len(data) - 2)
        data[at : at + length] = (value * length)[: len(data[at : at + length])]
        return self.changed(shard.name, bytes(data), random)
