"""Describe a checkpoint's language model, and the known families, as plain data for tables and JSON."""

from __future__ import annotations

from typing import Any

from qkedit.checkpoint.architecture.heads import AttentionLayer, AttentionStack, HeadNorm, HeadRows
from qkedit.checkpoint.architecture.library import architectures


def describe_stack(stack: AttentionStack) -> dict[str, Any]:
    """Return a checkpoint's language model layer by layer: tensors, rows, heads, groups, form, norm, bias, positions.

    Layers with a product and skipped layers are in separate lists; every value is plain JSON.
    """
    return {
        "family": stack.family,
        "decoder": stack.decoder,
        "understood_as": stack.understood_as,
        "layer_count": stack.layer_count,
        "layers": [_describe_layer(layer) for layer in stack.layers],
        "skipped": [{"layer": skipped.index, "reason": skipped.reason} for skipped in stack.skipped],
    }


def known_families() -> list[dict[str, Any]]:
    """Return every recorded vision-language family, by name: its model types, decoder, layouts, norm and positions.

    Many families can use several decoders; the one here is used if the config does not name a decoder.
    """
    known = architectures()
    rows = []
    for family in sorted(known.families.values(), key=lambda family: family.name.casefold()):
        decoder = known.decoder_of(family.decoder)
        assert decoder is not None  # checked by the library
        origin = known.origin(family)
        rows.append(
            {
                "family": family.name,
                "model_types": list(family.model_types),
                "vision": family.vision,
                "decoder": decoder.name,
                "layouts": list(decoder.layouts),
                "norm": decoder.norm.kind.value if decoder.norm else None,
                "rope": decoder.rope.value,
                "record": str(origin) if origin else None,
                "source": origin.source if origin else None,
            }
        )
    return rows


def _describe_layer(layer: AttentionLayer) -> dict[str, Any]:
    return {
        "layer": layer.index,
        "form": layer.form,
        "query_heads": layer.query_heads,
        "key_heads": layer.key_heads,
        "group_size": layer.group_size,
        "head_size": layer.head_size,
        "query": _describe_rows(layer.query),
        "key": _describe_rows(layer.key),
        "query_bias": layer.query_bias.tensor.name if layer.query_bias else None,
        "key_bias": layer.key_bias.tensor.name if layer.key_bias else None,
        "query_norm": _describe_norm(layer.query_norm),
        "key_norm": _describe_norm(layer.key_norm),
        "rope": layer.rope.value,
    }


def _describe_rows(rows: HeadRows) -> dict[str, Any]:
    return {
        "tensor": rows.tensor.name,
        "shard": rows.tensor.shard,
        "dtype": rows.tensor.dtype,
        "shape": list(rows.tensor.shape),
        "rows": _ranges(rows),
    }


def _ranges(rows: HeadRows) -> list[list[int]]:
    """Return the rows of all heads as `[first, end)` pairs, with adjacent ranges joined."""
    ranges: list[list[int]] = []
    for start in rows.starts:
        if ranges and ranges[-1][1] == start:
            ranges[-1][1] = start + rows.head_size
        else:
            ranges.append([start, start + rows.head_size])
    return ranges


def _describe_norm(norm: HeadNorm | None) -> dict[str, Any] | None:
    if norm is None:
        return None
    return {
        "kind": norm.kind.value,
        "gain": norm.gain.tensor.name if norm.gain else None,
        "shift": norm.shift.tensor.name if norm.shift else None,
        "across_heads": norm.across_heads,
    }
