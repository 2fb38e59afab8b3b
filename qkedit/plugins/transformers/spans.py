"""Restrict a decoder's arguments for a whole prompt to a span of its columns.

Running the spans in turn into the same cache is the same computation as running the prompt at once, as long as no
column attends to a later one across a cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qkedit.errors import UnsupportedForm
from qkedit.plugins.core.prefill import Span

# The dimension of each decoder argument that indexes prompt columns.
COLUMN_DIMENSION = {
    "input_ids": 1,
    "inputs_embeds": 1,
    "position_ids": -1,
    "token_type_ids": 1,
    "mm_token_type_ids": 1,
    "visual_pos_masks": 1,
    "per_layer_inputs": 1,
    "cache_position": 0,
}


def span_arguments(arguments: Mapping[str, Any], span: Span, cache: Any, layer_types: list[str]) -> dict[str, Any]:
    """Return the decoder's arguments for the columns of `span`.

    Args:
        arguments: the decoder's keyword arguments for the whole prompt, with `inputs_embeds`.
        span: the columns.
        cache: the cache with the columns before the span; None runs the span without a cache.
        layer_types: the kind of each layer, as in the config.

    Raises:
        UnsupportedForm: an argument is an unknown tensor that may need cutting, or a block mask.
    """
    embeddings = arguments["inputs_embeds"]
    cut: dict[str, Any] = {}
    for name, value in arguments.items():
        if name == "attention_mask":
            cut[name] = _cut_masks(value, span, embeddings, cache, layer_types)
        elif name == "past_key_values":
            cut[name] = cache
        elif name == "deepstack_visual_embeds" and value is not None:
            cut[name] = _cut_deepstack(value, arguments["visual_pos_masks"], span)
        elif isinstance(value, Tensor) and name in COLUMN_DIMENSION:
            dimension = COLUMN_DIMENSION[name]
            # A single position applies to a whole batch, never to a whole prompt.
            cut[name] = value.narrow(dimension, span.first, span.end - span.first)
        elif isinstance(value, Tensor):
            raise UnsupportedForm(
                f"its decoder has the argument {name}, which cannot be cut into parts of a prompt",
                where="model",
                remedy="use plug-ins that do not edit the cache",
            )
        else:
            cut[name] = value
    return cut


def is_bidirectional(masks: Any, column: int) -> bool:
    """Return whether, by the decoder's masks, a column before `column` attends to `column` or a later one."""
    if isinstance(masks, Mapping):
        return any(is_bidirectional(mask, column) for mask in masks.values())
    if not isinstance(masks, Tensor) or masks.ndim != 4:
        return False  # no mask, or only padding: the decoder makes it causal itself
    return bool(_allowed(masks[..., :column, column:]).any())


def real_tokens(masks: Any, batch: int, length: int) -> Tensor:
    """Return `[batch, length]` bool on the CPU: True for tokens, False for padding.

    Args:
        masks: the model's attention mask: None, a padding mask `[batch, length]`, or one or several complete ones
            `[batch, 1, length, keys]`, as `generate` makes them for static caches.
        batch: the number of prompts.
        length: their length with padding.
    """
    if isinstance(masks, Mapping):
        masks = next((mask for mask in masks.values() if mask is not None), None)
    if masks is None:
        return torch.ones(batch, length, dtype=torch.bool)
    if masks.ndim == 2:
        return masks[:, :length].bool().cpu()
    # A token attends to itself, and nothing attends to padding.
    own = _allowed(masks)[:, 0, :, :length].diagonal(dim1=-2, dim2=-1)
    return own.expand(batch, -1).cpu()


def _allowed(mask: Tensor) -> Tensor:
    """Convert a complete mask, boolean or additive, to a boolean one."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _cut_masks(masks: Any, span: Span, embeddings: Tensor, cache: Any, layer_types: list[str]) -> Any:
    if not isinstance(masks, Mapping):
        return _cut_mask(masks, span, embeddings, cache, layer=0, made_by_decoder=True)
    return {
        kind: _cut_mask(
            mask, span, embeddings, cache, layer_types.index(kind) if kind in layer_types else 0, made_by_decoder=False
        )
        for kind, mask in masks.items()
    }


def _cut_mask(mask: Any, span: Span, embeddings: Tensor, cache: Any, layer: int, made_by_decoder: bool) -> Any:
    columns = span.end - span.first
    if mask is None:
        if made_by_decoder or span.first == 0 or columns == 1:
            return None
        # The model left out a purely causal mask, which is valid only for a whole prompt.
        seen = torch.ones(span.end, span.end, dtype=torch.bool, device=embeddings.device).tril()
        return seen[None, None, span.first :]
    if not isinstance(mask, Tensor):
        if cache is None and columns == embeddings.shape[1]:
            return mask
        raise UnsupportedForm(
            f"its masks are a {type(mask).__name__}, which cannot be cut into parts of a prompt",
            where="flex_attention",
            remedy="load the model with attn_implementation='sdpa', or use plug-ins that do not edit the cache",
        )
    if mask.ndim == 2:
        return mask[:, : span.end]
    keys, offset = (span.end, 0) if cache is None else cache.get_mask_sizes(columns, layer)
    cut = mask[..., span.first : span.end, offset : offset + keys]
    missing = keys - cut.shape[-1]
    if missing <= 0:
        return cut
    # Slots of the cache after the prompt, not written yet.
    closed = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return torch.nn.functional.pad(cut, (0, missing), value=closed)


def _cut_deepstack(features: list[Tensor], positions: Tensor, span: Span) -> list[Tensor]:
    """Return the features of the vision tokens in the span, in the order of the prompts' vision tokens."""
    inside = torch.zeros_like(positions)
    inside[:, span.first : span.end] = True
    chosen = inside[positions]
    return [feature[chosen.to(feature.device)] for feature in features]
