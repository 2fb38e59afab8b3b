"""Aliases for published models, read from the YAML records in `configs/presets/`.

    - aliases: [qwen2-vl, qwen2-vl-7b]
      hub: Qwen/Qwen2-VL-7B-Instruct
      layers: 28
      scr: {layers: [0, 15], diagnosis: [8, 16]}

A record holds what cannot be computed: the hub id, the number of language-model layers, and, for the models that a
paper names, its SCR layers (arXiv 2602.22469). The middle layers follow from the number of layers, and the settings
of DSCR (OpenReview FHTt9ipAra) are the same for all models, so neither stands in a record.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from qkedit.configuration_files import configuration_files, read_configuration
from qkedit.errors import QkeditError

DEMO = "demo"  # the embedded checkpoint, which no alias may be called like
ALIAS = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
LayerRange = tuple[int, int]  # first and last layer, 0-based, both included


@dataclass(frozen=True)
class ScrLayers:
    """Where SCR was published to act in one model."""

    layers: LayerRange  # redistribution
    diagnosis: LayerRange  # attention scores


@dataclass(frozen=True)
class Preset:
    """One published model."""

    aliases: tuple[str, ...]
    hub_id: str
    layer_count: int  # of the language model
    scr: ScrLayers | None = None


@cache
def presets() -> tuple[Preset, ...]:
    """Every preset, by file and in the files' order. Raises QkeditError for a record that is wrong."""
    return tuple(
        preset
        for file in configuration_files("presets")
        for preset in parse_presets(read_configuration("presets", file), file)
    )


@cache
def presets_by_alias() -> dict[str, Preset]:
    """Every preset by each of its aliases. Raises QkeditError for an alias that is given twice."""
    found: dict[str, Preset] = {}
    for preset in presets():
        for alias in preset.aliases:
            if alias in found:
                raise _wrong(f"the alias {alias!r} is given twice", f"{found[alias].hub_id} and {preset.hub_id}")
            found[alias] = preset
    return found


def similar_aliases(name: str) -> tuple[str, ...]:
    """At most three aliases (or "demo") that look like `name`, the nearest first."""
    return tuple(difflib.get_close_matches(name.lower(), [DEMO, *presets_by_alias()], n=3, cutoff=0.6))


def parse_presets(records: object, file: str) -> tuple[Preset, ...]:
    """Check and convert the records of one file.

    Args:
        records: the parsed YAML, a list of mappings.
        file: its name, for messages.

    Raises:
        QkeditError: a key is missing or unknown, or a value is not of its kind.
    """
    if not isinstance(records, list) or not records:
        raise _wrong("is no list of records", file)
    return tuple(_preset(record, f"{file}, record {number}") for number, record in enumerate(records, start=1))


def _preset(record: object, where: str) -> Preset:
    fields = _mapping(record, {"aliases", "hub", "layers"}, {"scr"}, where)
    aliases, hub_id, layer_count = fields["aliases"], fields["hub"], fields["layers"]
    if not isinstance(aliases, list) or not aliases or not all(map(_is_alias, aliases)):
        raise _wrong(f"aliases must be a list of lower-case names other than {DEMO!r}, not {aliases!r}", where)
    if not isinstance(hub_id, str) or not HUB_ID.fullmatch(hub_id):
        raise _wrong(f"hub must be an id like org/name, not {hub_id!r}", where)
    if not _is_count(layer_count) or layer_count == 0:
        raise _wrong(f"layers must be a positive whole number, not {layer_count!r}", where)
    scr = _scr(fields["scr"], layer_count, f"{where}, scr") if "scr" in fields else None
    return Preset(tuple(aliases), hub_id, layer_count, scr)


def _scr(record: object, layer_count: int, where: str) -> ScrLayers:
    fields = _mapping(record, {"layers", "diagnosis"}, set(), where)
    return ScrLayers(
        layers=_layer_range(fields["layers"], layer_count, f"{where}, layers"),
        diagnosis=_layer_range(fields["diagnosis"], layer_count, f"{where}, diagnosis"),
    )


def _layer_range(value: object, layer_count: int, where: str) -> LayerRange:
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_count, value)):
        raise _wrong(f"must be the first and the last layer, not {value!r}", where)
    first, last = value
    if not first <= last < layer_count:
        raise _wrong(f"must be in order and below {layer_count}, not {value!r}", where)
    return first, last


def _mapping(record: object, required: set[str], optional: set[str], where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise _wrong(f"must have the keys {_listed(required | optional)}", where)
    if missing := required - record.keys():
        raise _wrong(f"lacks {_listed(missing)}", where)
    if unknown := record.keys() - required - optional:
        raise _wrong(f"has the unknown key {_listed(unknown)}", where)
    return record


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names)))


def _is_alias(value: object) -> bool:
    return isinstance(value, str) and ALIAS.fullmatch(value) is not None and value != DEMO


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _wrong(what: str, where: str) -> QkeditError:
    return QkeditError(what, where=f"configs/presets: {where}", remedy="correct the record")
