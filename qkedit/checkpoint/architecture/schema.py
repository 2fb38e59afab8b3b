"""The form of the records in `configs/` that say of model families what headers and config cannot tell.

* `layouts/` – a form in which query and key rows are in tensors: tensor names and the order of rows.
* `decoders/` – a language model by the `model_type` of its config: its layouts, its norm, its positions, and the
  settings that its config class fills in where a config leaves them out.
* `families/` – a vision-language model by its `model_type`: its name, and its decoder where the config is flat.
* `refusals.yaml` – tensors that mean a form which is not edited.
* `explained.yaml` – tensors in an attention block that do not matter to the product.

A new model is a new record; no code knows one model from another. `docs/adding-a-model.md` explains each field.
Users' own directories have the same form. `replaces` names the record of an earlier source that goes for this one.
`library.py` holds the records.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from qkedit.checkpoint.record_reader import closest


class Rotation(StrEnum):
    """How positions rotate the heads of a layer.

    *partial*: only the first numbers of a head turn; *interleaved*: neighbouring numbers make a pair, else those half
    a head apart; *multimodal*: time, row and column share the pairs.
    """

    ROTARY = "rotary"
    INTERLEAVED = "interleaved rotary"
    MULTIMODAL = "multimodal rotary"
    INTERLEAVED_MULTIMODAL = "interleaved multimodal rotary"
    PARTIAL = "partial rotary"
    PARTIAL_INTERLEAVED = "partial interleaved rotary"
    PARTIAL_MULTIMODAL = "partial multimodal rotary"
    PARTIAL_INTERLEAVED_MULTIMODAL = "partial interleaved multimodal rotary"
    NONE = "none"  # the logit of a layer knows no positions
    UNKNOWN = "unknown"  # nobody has read it off the model's code

    @property
    def is_partial(self) -> bool:
        """Whether only a part of each head turns."""
        return "partial" in self.value.split()

    @property
    def is_interleaved(self) -> bool:
        """Whether a pair is two neighbouring numbers of a head."""
        return "interleaved" in self.value.split()

    @property
    def is_multimodal(self) -> bool:
        """Whether time, row and column share the pairs."""
        return "multimodal" in self.value.split()


class NormKind(StrEnum):
    """The norms of queries and keys; `HeadNorm` has their formulas."""

    RMS = "rms"
    ONE_PLUS_RMS = "one-plus rms"
    LAYER = "layer norm"
    L2 = "l2"


class RowScope(StrEnum):
    """What the rows of a projection repeat for."""

    LAYER = "layer"
    KEY_HEAD = "key head"
    QUERY_HEAD = "query head"


class HeadKind(StrEnum):
    """What one head's rows of a projection are."""

    QUERY = "query"
    GATE = "gate"  # of a query head's output
    KEY = "key"
    VALUE = "value"


@dataclass(frozen=True)
class RowOrder:
    """The order of rows in one projection: `rows` repeats once per `per`.

    In the scope of a query head each of `rows` is one head; in that of a key head "query" stands for the query
    heads of its group; in that of a layer each stands for all heads of its kind.
    """

    tensor: str
    per: RowScope
    rows: tuple[HeadKind, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for rows that cannot be told apart, or are not there once a query head."""
        if len(set(self.rows)) < len(self.rows):
            raise ValueError(f"rows names one kind twice: {', '.join(self.rows)}")
        if self.per is RowScope.QUERY_HEAD and (shared := {HeadKind.KEY, HeadKind.VALUE} & {*self.rows}):
            raise ValueError(f"there is not one {min(shared)} per query head, where query heads share keys")


@dataclass(frozen=True)
class ProjectionLayout:
    """A form of the projections; `attention` matches the path of an attention module, with its `layer`."""

    name: str
    attention: re.Pattern[str]
    query: RowOrder
    key: RowOrder
    replaces: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a pattern without its group, or rows without their kind."""
        if {*self.attention.groupindex} != {"layer"}:
            raise ValueError(r"attention must name one group, (?P<layer>\d+)")
        for kind, order in ((HeadKind.QUERY, self.query), (HeadKind.KEY, self.key)):
            if kind not in order.rows:
                raise ValueError(f"{kind}.rows does not name {kind}")


@dataclass(frozen=True)
class NormRecord:
    """The norm of queries and keys: its kind as in `HeadNorm`, the tensors of its gains, and when it is there."""

    kind: NormKind
    query: str | None = None
    key: str | None = None
    when: str | None = None  # a setting of the config that switches it
    mlx: NormKind | None = None  # the kind where the tensors stand as MLX stores them, if that may differ

    def __post_init__(self) -> None:
        """Raise ValueError for tensors that the kind does not have, or lacks."""
        if self.kind is NormKind.L2 and (self.query or self.key):
            raise ValueError("l2 has no gains, so it names no tensors")
        if self.kind is not NormKind.L2 and not (self.query and self.key):
            raise ValueError(f"{self.kind} needs query and key, the names of the tensors of its gains")
        if self.mlx is not None and self.kind is not NormKind.ONE_PLUS_RMS:
            raise ValueError("mlx is for one-plus rms alone, whose gains MLX may store in another way")


@dataclass(frozen=True)
class Unrotated:
    """The layers without rotary positions.

    Layer i is one where `layers[i] == value` in the config's list; where the config has no list, each
    `period`-th layer is. If `unless_null` names a setting that is null, no layer is.
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
# Settings of config classes that are read, with their types; a decoder's `defaults` may name these and those that its
# record names. A default of null says that the class has the setting, and that it is off.
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
    _NUMBER: "a number from 0",
    _FLAG: "true or false",
    _LIST: "a list",
}


@dataclass(frozen=True)
class Decoder:
    """A language model, known by the `model_type` of its config."""

    name: str
    layouts: tuple[str, ...]  # the first whose query tensor is there counts
    rope: Rotation
    model_types: tuple[str, ...]
    norm: NormRecord | None = None
    unrotated: Unrotated | None = None
    # Settings that give these numbers; where a model has several, the shape of each layer tells which holds.
    key_heads: tuple[str, ...] = ("num_key_value_heads",)
    head_size: tuple[str, ...] = ("head_dim",)
    shared_keys: str | None = None  # setting: how many of the last layers read the keys of earlier ones
    defaults: dict[str, DefaultValue] = field(default_factory=dict)
    replaces: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for defaults that nothing reads, or that are not of their setting's type."""
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
                raise ValueError(f"defaults has {name!a}, a setting that nothing reads; {closest(name, known)}")
            negative = isinstance(value, int | float) and value < 0
            if value is not None and (type(value) not in known[name] or negative):
                raise ValueError(f"defaults.{name} is {value!a}, not {_TYPE_NAMES[known[name]]}")


@dataclass(frozen=True)
class Family:
    """A vision-language model, known by the `model_type` of its config and, if given, of its vision config."""

    name: str
    model_types: tuple[str, ...]
    decoder: str  # the text `model_type` where the config names none
    vision: str | None = None
    replaces: str | None = None


@dataclass(frozen=True)
class Refusal:
    """A form that is not edited, told by a tensor's name after `layers.N.`."""

    name: str
    tensor: re.Pattern[str]
    reason: str
    remedy: str


@dataclass(frozen=True)
class Explanation:
    """Tensors within an attention block, by their names there, that do not matter to the query-key product."""

    tensor: re.Pattern[str]
    reason: str
