"""What headers and config cannot tell about a model family, read from the YAML records in `configs/`.

* `layouts/` – a form in which query and key rows stand in tensors: tensor names and the order of rows.
* `decoders/` – a language model by the `model_type` of its config: its layout and what the config leaves out.
* `families/` – a vision-language model by its `model_type`: its name, and its decoder where the config is flat.
* `refusals.yaml` – tensors that mean a form which is not edited.

A new model is a new record; no code here or in `layers` knows one model from another.
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
class Decoder:
    """A language model: its layout, and the settings its config class fills in where a config leaves them out."""

    name: str
    model_types: tuple[str, ...]
    layout: str
    rope: str
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A vision-language model; `decoder` is the text `model_type` where the config names none."""

    name: str
    model_types: tuple[str, ...]
    decoder: str


@dataclass(frozen=True)
class Refusal:
    """A form that is not edited, told by a tensor's name after `layers.N.`."""

    name: str
    tensor: re.Pattern[str]
    reason: str
    remedy: str


@cache
def layouts() -> dict[str, Layout]:
    """Every layout by its name."""
    return {record["name"]: _layout(record) for record in _records("layouts")}


@cache
def decoders() -> dict[str, Decoder]:
    """Every decoder by each of its model types."""
    return {
        model_type: Decoder(**{**record, "model_types": tuple(record["model_types"])})
        for record in _records("decoders")
        for model_type in record["model_types"]
    }


@cache
def families() -> dict[str, Family]:
    """Every family by each of its model types."""
    return {
        model_type: Family(**{**record, "model_types": tuple(record["model_types"])})
        for record in _records("families")
        for model_type in record["model_types"]
    }


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
        query=_rows(record["query"]),
        key=_rows(record["key"]),
    )


def _rows(record: dict[str, Any]) -> Rows:
    return Rows(record["tensor"], record["per"], tuple(record["rows"]))
