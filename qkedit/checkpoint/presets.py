"""Aliases for published models, read from the YAML records in `configs/presets/`.

    - aliases: [qwen2-vl, qwen2-vl-7b]
      hub: Qwen/Qwen2-VL-7B-Instruct
      layers: 28
      scr: {layers: [0, 15], diagnosis: [8, 16]}

A record holds facts that cannot be computed: the hub id, the number of language-model layers, and, for the models in
the SCR paper (arXiv 2602.22469), their SCR layers. The middle layers follow from the number of layers, and the
settings of DSCR (OpenReview FHTt9ipAra) are the same for all models, so neither is in a record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from qkedit.checkpoint.record_reader import keyed, read_records, wrong
from qkedit.configuration_files import configuration_files, read_configuration
from qkedit.demo import DEMOS
from qkedit.errors import near_words

ALIAS = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
LayerRange = tuple[int, int]  # first and last layer, 0-based, both inclusive


@dataclass(frozen=True)
class ScrLayers:
    """The published layers of SCR for one model."""

    layers: LayerRange  # redistribution
    diagnosis: LayerRange  # attention scores


@dataclass(frozen=True)
class Preset:
    """One published model."""

    aliases: tuple[str, ...]
    hub_id: str = keyed("hub")
    layer_count: int = keyed("layers")  # layers of the language model
    scr: ScrLayers | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for ambiguous names, and for layers that the model does not have."""
        for alias in self.aliases:
            if not ALIAS.fullmatch(alias) or alias in DEMOS:
                reserved = " and ".join(map(repr, DEMOS))
                raise ValueError(f"aliases must be lower-case names other than {reserved}, not {alias!a}")
        if not HUB_ID.fullmatch(self.hub_id):
            raise ValueError(f"hub must be an id such as org/name, not {self.hub_id!a}")
        if self.layer_count < 1:
            raise ValueError(f"layers must be a positive whole number, not {self.layer_count}")
        for name in ("layers", "diagnosis") if self.scr is not None else ():
            first, last = getattr(self.scr, name)
            if not 0 <= first <= last < self.layer_count:
                raise ValueError(f"scr.{name} must be in order and below {self.layer_count}, not [{first}, {last}]")


@cache
def presets() -> tuple[Preset, ...]:
    """Return every preset in the order of the files. Raises QkeditError for an invalid record."""
    return tuple(
        preset
        for file in configuration_files("presets")
        for preset in parse_presets(read_configuration("presets", file), file)
    )


@cache
def presets_by_alias() -> dict[str, Preset]:
    """Return every preset by each of its aliases. Raises QkeditError for an alias that occurs twice."""
    found: dict[str, Preset] = {}
    for preset in presets():
        for alias in preset.aliases:
            if alias in found:
                where = f"configs/presets: {found[alias].hub_id} and {preset.hub_id}"
                raise wrong(f"the alias {alias!r} is given twice", where)
            found[alias] = preset
    return found


def preset_by_alias(name: str) -> Preset | None:
    """Return the preset of an alias in any case; None for another name. A path cannot be one, and reads no records."""
    name = name.lower()
    return presets_by_alias().get(name) if name not in DEMOS and ALIAS.fullmatch(name) else None


def similar_aliases(name: str) -> tuple[str, ...]:
    """Return at most three aliases (or embedded models) that resemble `name`, the nearest first."""
    return near_words(name.lower(), [*DEMOS, *presets_by_alias()], most=3)


def parse_presets(records: object, file: str) -> tuple[Preset, ...]:
    """Check and convert the records of one file.

    Args:
        records: the parsed YAML, a list of mappings.
        file: the file's name, for messages.

    Raises:
        QkeditError: a key is missing or unknown, or a value has the wrong type.
    """
    return read_records(Preset, records, f"configs/presets/{file}")
