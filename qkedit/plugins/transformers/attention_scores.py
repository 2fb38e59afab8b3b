"""Let plug-ins edit the attention scores of the last token while the model runs with its usual attention.

Our attention function calls the usual one, and then computes the output of the last query anew from edited scores: one
row per head, in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from qkedit.errors import UsageError
from qkedit.plugins.core.decoding import DecodingEdit
from qkedit.plugins.transformers.attention_functions import registered, usual_attention

_active = threading.local()


@contextmanager
def edited_scores(text_config: Any, given: Mapping[str, Any], edits: Sequence[DecodingEdit]) -> Iterator[None]:
    """Let edits change the scores of the last token in their `scored_layers`, in this thread.

    Args:
        text_config: of the decoder.
        given: the arguments of `generate`; its `input_ids` tell how long the prompts are.
        edits: those without `scored_layers` are passed over.
    """
    scoring = [edit for edit in edits if edit.scored_layers]
    if not scoring:
        yield
        return
    usual = text_config._attn_implementation
    text_config._attn_implementation = {"": registered(usual, "scored", _attend)}
    _active.edits, _active.prompt = scoring, given["input_ids"].shape[1]
    try:
        yield
    finally:
        _active.edits = ()
        text_config._attn_implementation = {"": usual}


def _attend(
    usual: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, Any]:
    output, weights = usual_attention(usual, module, query, key, value, mask, **kwargs)
    layer: Any = module.layer_idx
    edits = [edit for edit in getattr(_active, "edits", ()) if layer in edit.scored_layers]
    # A prompt that runs in parts is scored with its last part alone.
    if edits and key.shape[2] >= _active.prompt:
        output = output.clone()
        output[:, -1] = _last_row(edits, layer, query, key, value, mask, kwargs).to(output.dtype)
    return output, weights


def _last_row(
    edits: Sequence[DecodingEdit], layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: Any
) -> Tensor:
    """Return the last query's attention output `[batch, heads, d]`; key and value are `[B, H_kv, S, d]` unrepeated."""
    groups, size = key.shape[1], query.shape[-1]
    last = query[:, :, -1].float().unflatten(1, (groups, -1))  # [B, H_kv, H / H_kv, d]
    scores = (last @ key.float().transpose(-1, -2) * (kwargs.get("scaling") or size**-0.5)).flatten(1, 2)
    for edit in edits:
        scores = edit.edit_scores(layer, scores)
    shares = scores.masked_fill(~_seen(mask, scores), -torch.inf).softmax(dim=-1)
    return (shares.unflatten(1, (groups, -1)) @ value.float()).flatten(1, 2)


def _seen(mask: Any, scores: Tensor) -> Tensor:
    """Return which columns the last token sees, `[batch or 1, 1, columns]`."""
    if isinstance(mask, BlockMask):
        raise UsageError(
            "attention scores cannot be edited in flex attention",
            where="attn_implementation",
            remedy="load the model with sdpa or eager attention",
        )
    if mask is None:
        return torch.ones(1, 1, scores.shape[-1], dtype=torch.bool, device=scores.device)
    if mask.ndim == 2:  # of padding, as flash attention takes it
        return mask.bool()[:, None]
    own = mask[:, 0, -1:, : scores.shape[-1]]
    seen: Tensor = own if own.dtype == torch.bool else own >= 0
    return seen
