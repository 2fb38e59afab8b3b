"""What headers and config cannot tell about a model family, read from the YAML records in `configs/`.

* `layouts/` – a form in which query and key rows stand in tensors: tensor names and the order of rows.
* `decoders/` – a language model by the `model_type` of its config: its layouts, its norm, its positions, and the
  settings that its config class fills in where a config leaves them out.
* `families/` – a vision-language model by its `model_type`: its name, and its decoder where the config is flat.
* `refusals.yaml` – tensors that mean a form which is not edited.
* `explained.yaml` – tensors in an attention block that do not matter to the product.

A new model is a new record; no code knows one model from another. `docs/adding-a-model.md` explains each field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from qkedit.configuration_files import configuration_files, read_configuration


@dataclass(frozen=True)
class Rows:
    """The order of rows in one projection: `rows` repeats once per `per`.

    In the scope of a query head each of `rows` is one head; in that of a key head "query" stands for the query
    heads of its group; in that of a layer each stands for all heads of its kind.
    """

    tensor: str
    per: str
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A form of the projections; `attention` matches the path of an attention module, with its `layer`."""

    name: str
    attention: re.Pattern[str]
    query: Rows
    key: Rows


@dataclass(frozen=True)
class NormRecord:
    """The norm of queries and keys: its kind as in `HeadNorm`, the tensors of its gains, and when it is there."""

    kind: str
    query: str | None = None
    key: str | None = None
    when: str | None = None  # a setting of the config that switches it
    mlx: str | None = None  # the kind where the tensors stand as MLX stores them, if that may differ


@dataclass(frozen=True)
class Unrotated:
    """The layers without rotary positions.

    Layer i is one where `layers[i] == value` in the config's list; where the config has no list, each
    `period`-th layer is. If `unless_null` names a setting that is null, no layer is.
    """

    layers: str
    value: Any
    period: str
    unless_null: str | None = None


@dataclass(frozen=True)
class Decoder:
    """A language model, known by the `model_type` of its config."""

    name: str
    layouts: tuple[str, ...]  # the first whose query tensor is there counts
    rope: str
    model_types: tuple[str, ...] = ()
    norm: NormRecord | None = None
    unrotated: Unrotated | None = None
    # Settings that give these numbers; where a model has several, the shape of each layer tells which holds.
    key_heads: tuple[str, ...] = ("num_key_value_heads",)
    head_size: tuple[str, ...] = ("head_dim",)
    shared_keys: str | None = None  # setting: how many of the last layers read the keys of earlier ones
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A vision-language model, known by the `model_type` of its config and, if given, of its vision config."""

    name: str
    model_types: tuple[str, ...]
    decoder: str  # the text `model_type` where the config names none
    vision: str | None = None


@dataclass(frozen=True)
class Refusal:
    """A form that is not edited, told by a tensor's name after `layers.N.`."""

    name: str
    tensor: re.Pattern[str]
    reason: str
    remedy: str


@cache
def explained() -> tuple[re.Pattern[str], ...]:
    """Names within an attention block, of tensors that do not matter to the query-key product."""
    return tuple(re.compile(record["tensor"]) for record in read_configuration("explained.yaml"))


@cache
def layouts() -> dict[str, Layout]:
    """Every layout by its name."""
    return {layout.name: layout for layout in map(_layout, _records("layouts"))}


@cache
def decoders() -> dict[str, Decoder]:
    """Every decoder by each of its model types."""
    return {
        model_type: decoder for decoder in map(_decoder, _records("decoders")) for model_type in decoder.model_types
    }


@cache
def families() -> tuple[Family, ...]:
    """Every family, the more specific ones first."""
    records = [Family(**_tuples(record)) for record in _records("families")]
    return tuple(sorted(records, key=lambda family: (family.vision is None, family.name)))


@cache
def refusals() -> tuple[Refusal, ...]:
    """Every form that is not edited."""
    return tuple(
        Refusal(**{**record, "tensor": re.compile(record["tensor"])}) for record in read_configuration("refusals.yaml")
    )


def _records(directory: str) -> list[dict[str, Any]]:
    return [read_configuration(directory, file) for file in configuration_files(directory)]


def _layout(record: dict[str, Any]) -> Layout:
    return Layout(
        name=record["name"],
        attention=re.compile(record["attention"]),
        query=Rows(**_tuples(record["query"])),
        key=Rows(**_tuples(record["key"])),
    )


def _decoder(record: dict[str, Any]) -> Decoder:
    nested = {
        name: kind(**record[name])
        for name, kind in {"norm": NormRecord, "unrotated": Unrotated}.items()
        if name in record
    }
    return Decoder(**{**_tuples(record), **nested})


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
