"""Which rows of which tensor are query head h and key head g, from headers, config and records alone.

Works in on-disk names, so a model whose code is remote or not yet written is understood too. Head counts come
from the config (or the defaults that its config class fills in) and are then checked by shape; a disagreement
is an error, never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.header import TensorEntry
from qkedit.checkpoint.records import Decoder, Layout, Rows, decoders, families, layouts
from qkedit.checkpoint.refusing import (
    ADD_A_RECORD,
    refuse_encoder_decoder,
    refuse_recorded_forms,
    refuse_text_only,
    unknown_layout,
)
from qkedit.checkpoint.rows import HeadCounts, head_starts, row_count
from qkedit.errors import CheckpointError, UnsupportedForm

FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")
# What a model without a record is taken for; its names and shapes must bear that out.
UNKNOWN_DECODER = Decoder(name="unknown", model_types=(), layout="separate", rope="unknown")
QUERY_KEY_NORM = re.compile(r"^(?:q|k|query|key)_?(?:layer)?norm\.")


@dataclass(frozen=True)
class HeadRows:
    """Where the heads of one projection stand: head i is rows [starts[i], starts[i] + head_size)."""

    tensor: TensorEntry
    starts: tuple[int, ...]
    head_size: int


@dataclass(frozen=True)
class AttentionLayer:
    """One self-attention layer of the language model; query head h reads key head h // group_size."""

    index: int
    form: str  # name of the layout: "separate" …
    query: HeadRows
    key: HeadRows
    query_bias: HeadRows | None = None
    key_bias: HeadRows | None = None

    @property
    def query_heads(self) -> int:
        """H."""
        return len(self.query.starts)

    @property
    def key_heads(self) -> int:
        """H_kv."""
        return len(self.key.starts)

    @property
    def group_size(self) -> int:
        """H / H_kv."""
        return self.query_heads // self.key_heads


@dataclass(frozen=True)
class SkippedLayer:
    """A layer of the language model without a query-key product to edit, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class AttentionStack:
    """The language model of a checkpoint, layer by layer."""

    family: str  # name of the family's record, "unknown" without one
    decoder: str  # name of the language model's record, "unknown" without one
    rope: str  # kind of rotary positions: "rotary", "multimodal rotary" …
    layer_count: int  # all layers, with and without attention
    layers: tuple[AttentionLayer, ...]
    skipped: tuple[SkippedLayer, ...]


def attention_layers(checkpoint: Checkpoint, *, allow_text_only: bool = False) -> tuple[AttentionLayer, ...]:
    """Every text self-attention layer that can be edited, by index.

    Raises:
        UnsupportedForm: with the reason; for text-only checkpoints too, unless `allow_text_only`.
    """
    return attention_stack(checkpoint, allow_text_only=allow_text_only).layers


def attention_stack(checkpoint: Checkpoint, *, allow_text_only: bool = False) -> AttentionStack:
    """Understand a checkpoint's language model: its layers with a query-key product, and the others.

    Raises:
        UnsupportedForm: with the reason; for text-only checkpoints too, unless `allow_text_only`.
    """
    if not allow_text_only:
        refuse_text_only(checkpoint)
    refuse_encoder_decoder(checkpoint)
    refuse_recorded_forms(checkpoint)
    family = families().get(checkpoint.model_type)
    decoder = decoders().get(_decoder_type(checkpoint), UNKNOWN_DECODER)
    layout = layouts()[decoder.layout]
    modules = _attention_modules(checkpoint, layout)
    if not modules:
        raise unknown_layout(checkpoint)
    settings = {**decoder.defaults, **checkpoint.text_config}
    layer_count = _setting(settings, "num_hidden_layers", checkpoint)
    layers = tuple(
        _attention_layer(index, modules[index], layout, settings, checkpoint)
        for index in sorted(modules)
        # Heads for multi-token prediction may be stored as layers past the last one; loaders leave them out.
        if index < layer_count
    )
    attending = {layer.index for layer in layers}
    return AttentionStack(
        family=family.name if family else "unknown",
        decoder=decoder.name,
        rope=decoder.rope,
        layer_count=layer_count,
        layers=layers,
        skipped=tuple(
            SkippedLayer(index, "has no self-attention") for index in range(layer_count) if index not in attending
        ),
    )


def _decoder_type(checkpoint: Checkpoint) -> str:
    """The language model's `model_type`; a flat config has only the family's."""
    nested = checkpoint.text_config is not checkpoint.config
    model_type = checkpoint.text_config.get("model_type") if nested else None
    family = families().get(checkpoint.model_type)
    return str(model_type or (family.decoder if family else checkpoint.model_type))


def _attention_modules(checkpoint: Checkpoint, layout: Layout) -> dict[int, dict[str, TensorEntry]]:
    """Each layer's attention tensors by their name within the module ("q_proj.weight"), where it has queries."""
    pattern = re.compile(rf"(?P<module>{layout.attention.pattern})\.(?P<tensor>.+)")
    modules: dict[int, dict[str, TensorEntry]] = {}
    paths: dict[int, str] = {}
    for name, entry in checkpoint.tensors.items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        index = int(match["layer"])
        if paths.setdefault(index, match["module"]) != match["module"]:
            raise UnsupportedForm(
                f"layer {index} of the language model stands twice, as {paths[index]} and {match['module']}",
                where=checkpoint.files.name,
                remedy=ADD_A_RECORD,
            )
        modules.setdefault(index, {})[match["tensor"]] = entry
    return {index: tensors for index, tensors in modules.items() if f"{layout.query.tensor}.weight" in tensors}


def _attention_layer(
    index: int,
    tensors: dict[str, TensorEntry],
    layout: Layout,
    settings: dict[str, Any],
    checkpoint: Checkpoint,
) -> AttentionLayer:
    query = tensors[f"{layout.query.tensor}.weight"]
    key = tensors.get(f"{layout.key.tensor}.weight")
    if key is None:
        raise UnsupportedForm(
            f"layer {index} has a query projection but no {layout.key.tensor}.weight",
            where=f"tensor {query.name}",
            remedy=ADD_A_RECORD,
        )
    for name, entry in tensors.items():
        if QUERY_KEY_NORM.search(name):
            raise UnsupportedForm(
                "queries or keys are normalised, and no record says by what kind of norm",
                where=f"tensor {entry.name}",
                remedy=ADD_A_RECORD,
            )
    counts = _head_counts(settings, checkpoint)
    _check_matrix(query, layout.query, counts)
    _check_matrix(key, layout.key, counts)
    if query.shape[1] != key.shape[1]:
        raise CheckpointError(
            f"queries read {query.shape[1]} dimensions, keys {key.shape[1]}",
            where=f"tensor {query.name}",
            remedy="download or save the checkpoint again",
        )
    return AttentionLayer(
        index=index,
        form=layout.name,
        query=_heads(query, layout.query, "query", counts),
        key=_heads(key, layout.key, "key", counts),
        query_bias=_bias(tensors, layout.query, "query", counts),
        key_bias=_bias(tensors, layout.key, "key", counts),
    )


def _head_counts(settings: dict[str, Any], checkpoint: Checkpoint) -> HeadCounts:
    query_heads = _setting(settings, "num_attention_heads", checkpoint)
    # Config classes read an absent or null number of key heads as multi-head attention.
    key_heads = query_heads
    if settings.get("num_key_value_heads") is not None:
        key_heads = _setting(settings, "num_key_value_heads", checkpoint)
    if settings.get("head_dim") is not None:
        head_size = _setting(settings, "head_dim", checkpoint)
    else:
        head_size = _setting(settings, "hidden_size", checkpoint) // query_heads
    if query_heads % key_heads:
        raise CheckpointError(
            f"{query_heads} query heads cannot share {key_heads} key heads evenly",
            where="config.json",
            remedy="correct num_attention_heads and num_key_value_heads",
        )
    return HeadCounts(query_heads, key_heads, head_size)


def _setting(settings: dict[str, Any], name: str, checkpoint: Checkpoint) -> int:
    value = settings.get(name)
    if value is None:
        raise CheckpointError(
            f"does not say {name}, and no record knows the default of {_decoder_type(checkpoint) or 'this model'}",
            where="config.json",
            remedy=ADD_A_RECORD,
        )
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"{name} is {value!a}, not a count", where="config.json", remedy="correct or download it again"
        )
    return value


def _check_matrix(tensor: TensorEntry, rows: Rows, counts: HeadCounts) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise UnsupportedForm(
            f"the weights are quantised or of another kind ({tensor.dtype}), not {', '.join(FLOAT_DTYPES)}",
            where=f"tensor {tensor.name}",
            remedy="use the unquantised checkpoint and quantise the edited one",
        )
    expected = row_count(rows, counts)
    if len(tensor.shape) != 2 or tensor.shape[0] != expected:
        raise UnsupportedForm(
            f"the shape is {list(tensor.shape)}, but {counts} take {expected} rows",
            where=f"tensor {tensor.name}",
            remedy=f"check the head counts in config.json, or {ADD_A_RECORD}",
        )


def _heads(tensor: TensorEntry, rows: Rows, kind: str, counts: HeadCounts) -> HeadRows:
    return HeadRows(tensor, head_starts(rows, kind, counts), counts.head_size)


def _bias(tensors: dict[str, TensorEntry], rows: Rows, kind: str, counts: HeadCounts) -> HeadRows | None:
    bias = tensors.get(f"{rows.tensor}.bias")
    if bias is None:
        return None
    if bias.dtype not in FLOAT_DTYPES or bias.shape != (row_count(rows, counts),):
        raise UnsupportedForm(
            f"the bias is {bias.dtype} of shape {list(bias.shape)}, but {counts} take {row_count(rows, counts)}",
            where=f"tensor {bias.name}",
            remedy=f"check the head counts in config.json, or {ADD_A_RECORD}",
        )
    return _heads(bias, rows, kind, counts)
