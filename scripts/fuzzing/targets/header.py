"""Target for headers of safetensors files."""

from __future__ import annotations

from random import Random
from typing import Any

from safetensors import SafetensorError, deserialize

from fuzzing import seeds
from fuzzing.byte_strings import mutated
from fuzzing.json_trees import mutated_json
from fuzzing.judging import attempt
from fuzzing.target import Finding, Outcome, Target
from qkedit.checkpoint.io.header import LENGTH_BYTES, parse_json_object, read_header


class Header(Target):
    """Reads headers; the safetensors library must load every file that qkedit accepts."""

    name = "header"
    subject = "headers of safetensors files: the length, the JSON, dtypes, shapes, offsets"
    seconds = 5.0

    def prepare(self) -> None:
        """Cut a small file out of a checkpoint."""
        shard = min(seeds.checkpoint(self.work / "seed").glob("*.safetensors"), key=lambda file: file.stat().st_size)
        content = shard.read_bytes()
        length = int.from_bytes(content[:LENGTH_BYTES], "little")
        self._header: dict[str, Any] = parse_json_object(content[LENGTH_BYTES : LENGTH_BYTES + length], shard.name)
        self._data = content[LENGTH_BYTES + length :]

    def generate(self, random: Random) -> bytes:
        """Change the JSON, the length before it, or any byte."""
        header = mutated_json(self._header, random)
        length = len(header)
        kind = random.randrange(8)
        if kind == 0:
            length = random.choice((0, 1, length - 1, length + 1, 99_999_999, 100_000_001, 2**63, 2**64 - 1))
        data = self._data[: random.randrange(len(self._data))] if kind == 1 else self._data
        content = length.to_bytes(LENGTH_BYTES, "little") + header + data
        return mutated(content, random) if kind == 2 else content

    def check(self, given: bytes) -> Outcome:
        """Read the file from memory."""
        outcome = attempt(lambda: read_header(lambda start, end: given[start:end], len(given), "a.safetensors"))
        if outcome is Outcome.ACCEPTED:
            try:
                deserialize(given)
            except SafetensorError as error:
                raise Finding("oracle", f"accepted, but safetensors says: {error}") from error
        return outcome
