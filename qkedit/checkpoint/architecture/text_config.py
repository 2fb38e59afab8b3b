"""The numbers of a language model's config, checked before use, with the defaults of its config class.

Configs saved by transformers leave out values that equal the class's defaults (for its language model, LLaVA-1.5 says
little more than "llama"), so the decoder's record holds those defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qkedit.checkpoint.architecture.rows import HeadCounts
from qkedit.checkpoint.architecture.schema import Decoder, Rotation, Unrotated
from qkedit.checkpoint.architecture.unsupported import ADD_A_RECORD
from qkedit.errors import CheckpointError


@dataclass(frozen=True)
class TextConfig:
    """A language model's config over its class's defaults; null counts as absent where the class permits it."""

    decoder: Decoder
    values: dict[str, Any]

    @classmethod
    def of(cls, decoder: Decoder, text_config: dict[str, Any]) -> TextConfig:
        """Return the config's values over the defaults."""
        return cls(decoder, {**decoder.defaults, **text_config})

    def for_layer(self, index: int) -> TextConfig:
        """Return the settings of one layer; Gemma 4's config, as saved by transformers, overrides some per layer."""
        overrides = self.values.get("per_layer_config")
        override = overrides.get(str(index)) if isinstance(overrides, dict) else None
        if not isinstance(override, dict):
            return self
        return TextConfig(self.decoder, {**self.values, **override})

    def count(self, name: str) -> int:
        """Return a required number of at least 1. Raises CheckpointError if it is missing or invalid."""
        value = self.values.get(name)
        if value is None:
            raise CheckpointError(
                f"does not have {name}, and no record has its default", where="config.json", remedy=ADD_A_RECORD
            )
        if type(value) is not int or value < 1:
            raise CheckpointError(
                f"{name} is {value!a}, not a count",
                where="config.json",
                remedy="correct it or download the file again",
            )
        return value

    def head_counts(self) -> tuple[HeadCounts, ...]:
        """Return the possible head counts of a layer (at least one), the likeliest first; its shapes decide."""
        heads = self.count("num_attention_heads")
        # For config classes an absent or null number of key heads means multi-head attention.
        key_heads = self._present(self.decoder.key_heads) or [heads]
        head_sizes = self._present(self.decoder.head_size) or [self.count("hidden_size") // heads]
        fitting = [HeadCounts(heads, keys, size) for size in head_sizes for keys in key_heads if heads % keys == 0]
        if not fitting:
            raise CheckpointError(
                f"{heads} query heads cannot share {key_heads[0]} key heads evenly",
                where="config.json",
                remedy=f"correct num_attention_heads and {self.decoder.key_heads[0]}",
            )
        return tuple(fitting)

    def shares_keys(self, index: int, layer_count: int) -> bool:
        """Return whether the layer reads the keys of an earlier one."""
        name = self.decoder.shared_keys
        if name is None or not self.values.get(name):
            return False
        return index >= layer_count - self.count(name)

    def rope(self, index: int) -> Rotation:
        """Return the kind of rotary positions of one layer."""
        unrotated = self.decoder.unrotated
        return Rotation.NONE if unrotated and self._is_unrotated(unrotated, index) else self.decoder.rope

    def _present(self, names: tuple[str, ...]) -> list[int]:
        return [self.count(name) for name in names if self.values.get(name) is not None]

    def _is_unrotated(self, unrotated: Unrotated, index: int) -> bool:
        if unrotated.unless_null and self.values.get(unrotated.unless_null) is None:
            return False
        kinds = self.values.get(unrotated.layers)
        if isinstance(kinds, list) and index < len(kinds):
            return bool(kinds[index] == unrotated.value)
        period = self.values.get(unrotated.period)
        # EXAONE writes out one period: "LLLG" is three local layers and a global one.
        length = len(period) if isinstance(period, str) and period else self.count(unrotated.period)
        return (index + 1) % length == 0
