"""Let plug-ins edit the attention scores of the last token, or look at its attention, while the model runs as usual.

Our attention function calls the usual one, and then computes the last query anew, one row per head, in float32: its
output where scores are edited, and its attention where a plug-in looks at it.
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
    """Let edits change the scores of the last token in their `scored_layers`, and see its attention, in this thread.

    Args:
        text_config: of the decoder.
        given: the arguments of `generate`; its `input_ids` tell how long the prompts are.
        edits: those without `scored_layers` and `watched_layers` are passed over.
    """
    active = [edit for edit in edits if edit.scored_layers or edit.watched_layers]
    if not active:
        yield
        return
    usual = text_config._attn_implementation
    text_config._attn_implementation = {"": registered(usual, "scored", _attend)}
    _active.edits, _active.prompt = active, given["input_ids"].shape[1]
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
    active = getattr(_active, "edits", ())
    # A prompt that runs in parts is scored with its last part alone.
    edits = [edit for edit in active if layer in edit.scored_layers and key.shape[2] >= _active.prompt]
    watchers = [edit for edit in active if layer in edit.watched_layers]
    if not edits and not watchers:
        return output, weights
    if edits and isinstance(mask, BlockMask):
        raise UsageError(
            "attention scores cannot be edited in flex attention",
            where="attn_implementation",
            remedy="load the model with sdpa or eager attention",
        )
    scores = _last_scores(query, key, kwargs)
    for edit in edits:
        scores = edit.edit_scores(layer, scores)
    seen = _seen(mask, query.shape[2], scores, kwargs.get("sliding_window"))
    shares = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)  # [B, H, columns]
    if edits:
        output = output.clone()
        attended = shares.unflatten(1, (key.shape[1], -1)) @ value.float()
        output[:, -1] = attended.flatten(1, 2).to(output.dtype)
    for watcher in watchers:
        watcher.watch_attention(layer, shares)
    return output, weights


def _last_scores(query: Tensor, key: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the last query's scores `[B, H, columns]` before the mask; key is `[B, H_kv, columns, d]` unrepeated."""
    groups, size = key.shape[1], query.shape[-1]
    last = query[:, :, -1].float().unflatten(1, (groups, -1))  # [B, H_kv, H / H_kv, d]
    scores = (last @ key.float().transpose(-1, -2) * (kwargs.get("scaling") or size**-0.5)).flatten(1, 2)
    softcap = kwargs.get("softcap")
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _seen(mask: Any, queries: int, scores: Tensor, window: int | None) -> Tensor:
    """Return which columns the last token sees, bool, to be broadcast over `[batch, heads, columns]`.

    Args:
        mask: the layer's mask: complete, boolean or additive; a block mask for flex attention; or `[B, columns]` for
            padding only, or None, for flash attention.
        queries: the number of columns that pass through the layer together.
        scores: the scores of the last of them.
        window: the number of columns that a sliding layer sees.
    """
    columns = torch.arange(scores.shape[-1], device=scores.device)
    if isinstance(mask, BlockMask):
        rows = torch.arange(scores.shape[0], device=scores.device)[:, None, None]
        first, last = (torch.tensor(place, device=scores.device) for place in (0, queries - 1))
        return mask.mask_mod(rows, first, last, columns)
    if mask is not None and mask.ndim == 4:
        own = mask[:, :1, -1, : scores.shape[-1]]
        return own if own.dtype == torch.bool else own >= 0
    seen = columns >= (0 if window is None else len(columns) - window)
    if mask is not None:  # of padding, as flash attention takes it
        seen = seen & mask[:, None, -len(columns) :].bool()
    return seen
