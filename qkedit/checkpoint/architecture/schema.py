"""The schema of the records in `configs/`: the facts about model families that headers and config do not contain.

* `layouts/` – a form of the query and key projections: tensor names and the order of rows.
* `decoders/` – a language model by the `model_type` of its config: its layouts, its norm, its positions, and the
  defaults of its config class for settings that a config leaves out.
* `families/` – a vision-language model by its `model_type`: its name, and its decoder for a flat config.
* `refusals.yaml` – tensors that indicate a form which cannot be edited.
* `explained.yaml` – tensors in an attention block that do not affect the product.

A new model is a new record; no code depends on the model. `docs/adding-a-model.md` explains each field. Users'
directories have the same form. `replaces` names the record of an earlier source that this record replaces.
`library.py` holds the records.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from qkedit.checkpoint.record_reader import closest


class Rotation(StrEnum):
    """The way that positions rotate the heads of a layer.

    *partial*: only the first dimensions of a head rotate; *interleaved*: pairs are neighbouring dimensions, otherwise
    dimensions half a head apart; *multimodal*: each pair belongs to time, row or column.
    """

    ROTARY = "rotary"
    INTERLEAVED = "interleaved rotary"
    MULTIMODAL = "multimodal rotary"
    INTERLEAVED_MULTIMODAL = "interleaved multimodal rotary"
    PARTIAL = "partial rotary"
    PARTIAL_INTERLEAVED = "partial interleaved rotary"
    PARTIAL_MULTIMODAL = "partial multimodal rotary"
    PARTIAL_INTERLEAVED_MULTIMODAL = "partial interleaved multimodal rotary"
    NONE = "none"  # the logit does not depend on positions
    UNKNOWN = "unknown"  # not yet determined from the model's code

    @property
    def is_partial(self) -> bool:
        """True if only a part of each head rotates."""
        return "partial" in self.value.split()

    @property
    def is_interleaved(self) -> bool:
        """True if a pair is two neighbouring dimensions of a head."""
        return "interleaved" in self.value.split()

    @property
    def is_multimodal(self) -> bool:
        """True if each pair belongs to time, row or column."""
        return "multimodal" in self.value.split()


class NormKind(StrEnum):
    """The norms of queries and keys; `HeadNorm` has their formulas."""

    RMS = "rms"
    ONE_PLUS_RMS = "one-plus rms"
    LAYER = "layer norm"
    L2 = "l2"


class RowScope(StrEnum):
    """The unit over which the rows of a projection repeat."""

    LAYER = "layer"
    KEY_HEAD = "key head"
    QUERY_HEAD = "query head"


class HeadKind(StrEnum):
    """The role of one head's rows in a projection."""

    QUERY = "query"
    GATE = "gate"  # the gate of a query head's output
    KEY = "key"
    VALUE = "value"


@dataclass(frozen=True)
class RowOrder:
    """The order of rows in one projection: `rows` repeats once per `per`.

    In the scope of a query head each of `rows` is one head; in that of a key head "query" means the query heads of
    its group; in that of a layer each means all heads of its kind.
    """

    tensor: str
    per: RowScope
    rows: tuple[HeadKind, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for rows with a repeated kind, or without one of each per query head."""
        if len(set(self.rows)) < len(self.rows):
            raise ValueError(f"rows names one kind twice: {', '.join(self.rows)}")
        if self.per is RowScope.QUERY_HEAD and (shared := {HeadKind.KEY, HeadKind.VALUE} & {*self.rows}):
            raise ValueError(f"there is not one {min(shared)} per query head where query heads share keys")


@dataclass(frozen=True)
class ProjectionLayout:
    """A form of the projections; `attention` matches the path of an attention module and its group `layer`."""

    name: str
    attention: re.Pattern[str]
    query: RowOrder
    key: RowOrder
    replaces: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a pattern without its group, or rows that lack their own kind."""
        if {*self.attention.groupindex} != {"layer"}:
            raise ValueError(r"attention must name one group, (?P<layer>\d+)")
        for kind, order in ((HeadKind.QUERY, self.query), (HeadKind.KEY, self.key)):
            if kind not in order.rows:
                raise ValueError(f"{kind}.rows does not name {kind}")


@dataclass(frozen=True)
class NormRecord:
    """The norm of queries and keys: its kind as in `HeadNorm`, the tensors of its gains, and its condition."""

    kind: NormKind
    query: str | None = None
    key: str | None = None
    when: str | None = None  # the setting of the config that switches the norm on
    mlx: NormKind | None = None  # the kind for tensors in MLX's form, if it may differ

    def __post_init__(self) -> None:
        """Raise ValueError for tensors that do not belong to the kind, or are missing."""
        if self.kind is NormKind.L2 and (self.query or self.key):
            raise ValueError("l2 has no gains, so it must not name tensors")
        if self.kind is not NormKind.L2 and not (self.query and self.key):
            raise ValueError(f"{self.kind} needs query and key, the names of the tensors of its gains")
        if self.mlx is not None and self.kind is not NormKind.ONE_PLUS_RMS:
            raise ValueError("mlx is only for one-plus rms, whose gains MLX may store in another form")


@dataclass(frozen=True)
class InputNormRecord:
    """The norm before the projections: its kind as in `HeadNorm`, and its module in the decoder's layer.

    `mlx` is the kind for tensors in MLX's form; without it, `one-plus rms` is not known there.
    """

    kind: NormKind
    tensor: str
    mlx: NormKind | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a kind without gains."""
        if self.kind is NormKind.L2:
            raise ValueError("an input_norm of kind l2 has no gain to fold; leave it out")


@dataclass(frozen=True)
class Unrotated:
    """The layers without rotary positions.

    Layer i is one of them if `layers[i] == value` in the config's list; without a list, each `period`-th layer is.
    If `unless_null` names a setting that is null, no layer is.
    """

    layers: str
    value: str | int
    period: str
    unless_null: str | None = None


DefaultValue = str | int | float | bool | None | tuple[int, ...]
_COUNT: tuple[type, ...] = (int,)
_NUMBER: tuple[type, ...] = (int, float)
_FLAG: tuple[type, ...] = (bool,)
_LIST: tuple[type, ...] = (tuple,)
# The settings of config classes that are used, with their types; a decoder's `defaults` may name these and those that
# its record names. A default of null means that the class has the setting, and that it is off.
_SETTINGS: dict[str, tuple[type, ...]] = {
    "hidden_size": _COUNT,
    "num_hidden_layers": _COUNT,
    "num_attention_heads": _COUNT,
    "num_key_value_heads": _COUNT,
    "head_dim": _COUNT,
    "layer_types": _LIST,
    "max_position_embeddings": _COUNT,
    "mrope_interleaved": _FLAG,
    "mrope_rows_and_columns_first": _FLAG,
    "mrope_section": _LIST,
    "partial_rotary_factor": _NUMBER,
    "rope_local_base_freq": _NUMBER,
    "rope_theta": _NUMBER,
    "sliding_window": _COUNT,
    "sliding_window_pattern": _COUNT,
}
_TYPE_NAMES: dict[tuple[type, ...], str] = {
    _COUNT: "a count",
    _NUMBER: "a number of 0 or more",
    _FLAG: "true or false",
    _LIST: "a list",
}


@dataclass(frozen=True)
class Decoder:
    """A language model, identified by the `model_type` of its config."""

    name: str
    layouts: tuple[str, ...]  # the first whose query tensor exists is used
    rope: Rotation
    model_types: tuple[str, ...]
    norm: NormRecord | None = None
    input_norm: InputNormRecord | None = None
    unrotated: Unrotated | None = None
    # Names of the settings with these numbers; where a model has several, the shape of each layer decides.
    key_heads: tuple[str, ...] = ("num_key_value_heads",)
    head_size: tuple[str, ...] = ("head_dim",)
    shared_keys: str | None = None  # the setting with the number of last layers that read the keys of earlier ones
    defaults: dict[str, DefaultValue] = field(default_factory=dict)
    replaces: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for defaults of unused settings, or of the wrong type."""
        known = dict(_SETTINGS)
        known |= dict.fromkeys((*self.key_heads, *self.head_size), _COUNT)
        if self.shared_keys:
            known[self.shared_keys] = _COUNT
        if self.norm and self.norm.when:
            known[self.norm.when] = _FLAG
        if self.unrotated:
            known |= {self.unrotated.layers: _LIST, self.unrotated.period: _COUNT}
            if self.unrotated.unless_null:
                known.setdefault(self.unrotated.unless_null, _COUNT)
        for name, value in self.defaults.items():
            if name not in known:
                raise ValueError(f"defaults has {name!a}, which is not a setting in use; {closest(name, known)}")
            negative = isinstance(value, int | float) and value < 0
            if value is not None and (type(value) not in known[name] or negative):
                raise ValueError(f"defaults.{name} is {value!a}, not {_TYPE_NAMES[known[name]]}")


@dataclass(frozen=True)
class Family:
    """A vision-language model, identified by the `model_type` of its config and, if given, of its vision config."""

    name: str
    model_types: tuple[str, ...]
    decoder: str  # the text `model_type` if the config does not have one
    vision: str | None = None
    replaces: str | None = None


@dataclass(frozen=True)
class Refusal:
    """A form that cannot be edited, recognised by a tensor's name after `layers.N.`."""

    name: str
    tensor: re.Pattern[str]
    reason: str
    remedy: str


@dataclass(frozen=True)
class Explanation:
    """Tensors of an attention block, by their names in it, that do not affect the query-key product."""

    tensor: re.Pattern[str]
    reason: str
