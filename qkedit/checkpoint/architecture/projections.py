"""The query and key projections of one layer: the head counts that match the shapes, and the rows of each head."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qkedit.checkpoint.architecture.heads import AttentionLayer, HeadNorm, HeadRows
from qkedit.checkpoint.architecture.library import architectures
from qkedit.checkpoint.architecture.rows import HeadCounts, head_starts, row_count
from qkedit.checkpoint.architecture.schema import HeadKind, NormKind, NormRecord, ProjectionLayout, RowOrder
from qkedit.checkpoint.architecture.text_config import TextConfig
from qkedit.checkpoint.architecture.unsupported import ADD_A_RECORD
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.other_kinds import EDIT_FIRST
from qkedit.errors import CheckpointError, UnsupportedForm

FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")
QUERY_OR_KEY_NORM = re.compile(
    r"^(?:(?:q|k|qk|query|key)_?(?:layer_?)?(?:norm|ln)|(?:layer_?)?(?:norm|ln)_?(?:q|k|qk|query|key))\."
)
CHECK_COUNTS = f"check the head counts in config.json, or {ADD_A_RECORD}"


@dataclass(frozen=True)
class Projections:
    """One attention module of a checkpoint: its layout, its tensors by their names in the module, its settings.

    `stored_by_mlx` tells whether the checkpoint was converted for MLX, which may add 1 to the gains of norms.
    """

    index: int
    layout: ProjectionLayout
    tensors: dict[str, TensorEntry]
    settings: TextConfig
    stored_by_mlx: bool = False


def understand_layer(found: Projections) -> AttentionLayer:
    """Return the rows of each head of the layer. Raises UnsupportedForm or CheckpointError, naming the tensor."""
    layout = found.layout
    query = _matrix(found, layout.query)
    key = _matrix(found, layout.key)
    if query.shape[1] != key.shape[1]:
        raise CheckpointError(
            f"queries read {query.shape[1]} dimensions, but keys read {key.shape[1]}",
            where=f"tensor {query.name}",
            remedy="download or save the checkpoint again",
        )
    if not query.nbytes:
        raise CheckpointError(
            f"has the empty shape {list(query.shape)}",
            where=f"tensor {query.name}",
            remedy="download or save the checkpoint again",
        )
    counts = _counts(found, query, key)
    query_norm, key_norm = _norms(found, counts)
    return AttentionLayer(
        index=found.index,
        form=layout.name,
        query=_heads(query, layout.query, HeadKind.QUERY, counts),
        key=_heads(key, layout.key, HeadKind.KEY, counts),
        query_bias=_bias(found, layout.query, HeadKind.QUERY, counts),
        key_bias=_bias(found, layout.key, HeadKind.KEY, counts),
        query_norm=query_norm,
        key_norm=key_norm,
        rope=found.settings.rope(found.index),
    )


def _matrix(found: Projections, rows: RowOrder) -> TensorEntry:
    tensor = found.tensors.get(f"{rows.tensor}.weight")
    if tensor is None:
        raise UnsupportedForm(
            f"layer {found.index} has a query projection but no {rows.tensor}.weight",
            where=f"tensor {found.tensors[f'{found.layout.query.tensor}.weight'].name}",
            remedy=ADD_A_RECORD,
        )
    _check_float(tensor)
    if len(tensor.shape) != 2:
        raise UnsupportedForm(
            f"the shape is {list(tensor.shape)}, which is not that of a matrix",
            where=f"tensor {tensor.name}",
            remedy=ADD_A_RECORD,
        )
    return tensor


def _check_float(tensor: TensorEntry) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise UnsupportedForm(
            f"the weights are {tensor.dtype}, so quantised, not one of {', '.join(FLOAT_DTYPES)}",
            where=f"tensor {tensor.name}",
            remedy=EDIT_FIRST,
        )


def _counts(found: Projections, query: TensorEntry, key: TensorEntry) -> HeadCounts:
    """Return the head counts of the config that match both shapes."""
    candidates = found.settings.head_counts()
    for counts in candidates:
        if query.shape[0] == row_count(found.layout.query, counts) and key.shape[0] == row_count(
            found.layout.key, counts
        ):
            return counts
    wrong, rows = query, row_count(found.layout.query, candidates[0])
    if query.shape[0] == rows:
        wrong, rows = key, row_count(found.layout.key, candidates[0])
    raise UnsupportedForm(
        f"the shape is {list(wrong.shape)}, but {candidates[0]} take {rows} rows",
        where=f"tensor {wrong.name}",
        remedy=CHECK_COUNTS,
    )


def _heads(tensor: TensorEntry, rows: RowOrder, kind: HeadKind, counts: HeadCounts) -> HeadRows:
    return HeadRows(tensor, head_starts(rows, kind, counts), counts.head_size)


def _bias(found: Projections, rows: RowOrder, kind: HeadKind, counts: HeadCounts) -> HeadRows | None:
    bias = found.tensors.get(f"{rows.tensor}.bias")
    if bias is None:
        return None
    _check_float(bias)
    if bias.shape != (row_count(rows, counts),):
        raise UnsupportedForm(
            f"the shape is {list(bias.shape)}, but {counts} take {row_count(rows, counts)} rows",
            where=f"tensor {bias.name}",
            remedy=CHECK_COUNTS,
        )
    return _heads(bias, rows, kind, counts)


def _norms(found: Projections, counts: HeadCounts) -> tuple[HeadNorm | None, HeadNorm | None]:
    """Return the norms of queries and keys. Raises UnsupportedForm for a norm that no record describes."""
    record = found.settings.decoder.norm
    if record is not None and record.when and not found.settings.values.get(record.when):
        record = None
    _refuse_unexplained(found, record)
    if record is None:
        return None, None
    kind = record.kind
    if found.stored_by_mlx and record.kind is NormKind.ONE_PLUS_RMS:
        if record.mlx is None:
            raise UnsupportedForm(
                "the checkpoint was converted for MLX, and no record says whether its norms' gains are stored as w or "
                "as 1 + w",
                where=f"layer {found.index}",
                remedy="use the checkpoint that it was converted from",
            )
        kind = record.mlx
    return (
        _norm(found, kind, record.query, counts.query_heads, counts.head_size),
        _norm(found, kind, record.key, counts.key_heads, counts.head_size),
    )


def _refuse_unexplained(found: Projections, norm: NormRecord | None) -> None:
    """Raise UnsupportedForm for a tensor of the attention block that may change the product, for all we know."""
    known = {found.layout.query.tensor, found.layout.key.tensor, *((norm.query, norm.key) if norm else ())}
    for name, tensor in found.tensors.items():
        module, _, part = name.rpartition(".")
        if module in known and part in ("weight", "bias"):
            continue
        if any(explanation.tensor.fullmatch(name) for explanation in architectures().explanations):
            continue
        what = (
            "queries or keys are normalised, and no record says by what kind of norm"
            if QUERY_OR_KEY_NORM.search(name)
            else "no record explains this tensor of an attention block, and it may change the query-key product"
        )
        raise UnsupportedForm(what, where=f"tensor {tensor.name}", remedy=ADD_A_RECORD)


def _norm(found: Projections, kind: NormKind, name: str | None, heads: int, head_size: int) -> HeadNorm | None:
    if name is None:
        return HeadNorm(kind)
    gain, shift = found.tensors.get(f"{name}.weight"), found.tensors.get(f"{name}.bias")
    if gain is None:
        return None
    return HeadNorm(
        kind,
        gain=_gains(gain, heads, head_size),
        shift=None if shift is None else _gains(shift, heads, head_size),
        # [heads · head_size] in one dimension is a norm over the whole projection, as in OLMo 2.
        across_heads=gain.shape == (heads * head_size,) and heads > 1,
    )


def _gains(tensor: TensorEntry, heads: int, head_size: int) -> HeadRows:
    """Return the elements of each head's gains: one set shared by all heads, or one per head."""
    _check_float(tensor)
    elements = math.prod(tensor.shape)
    if tensor.shape == (head_size,):
        starts = (0,) * heads
    elif tensor.shape in ((heads, head_size), (heads * head_size,)):
        starts = tuple(range(0, elements, head_size))
    else:
        raise UnsupportedForm(
            f"the shape is {list(tensor.shape)}, but {heads} heads of size {head_size} are normalised",
            where=f"tensor {tensor.name}",
            remedy=CHECK_COUNTS,
        )
    return HeadRows(tensor, starts, head_size)
