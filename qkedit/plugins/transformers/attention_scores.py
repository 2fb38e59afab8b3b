"""Let plug-ins edit the attention scores of the last token, read its attention, or hide columns from all tokens.

Our attention function calls the usual one, with a mask that also hides columns. Then it computes the last query again,
one row per head, in float32: its output if scores are edited, and its attention if a plug-in reads it.
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
from qkedit.plugins.core.decoding import AttentionEdit, DecodingEdit
from qkedit.plugins.transformers.attention_functions import registered, usual_attention

_active = threading.local()


@contextmanager
def edited_attention(
    text_config: Any,
    given: Mapping[str, Any],
    edits: Sequence[DecodingEdit],
    in_branches: Sequence[AttentionEdit | None] = (),
) -> Iterator[None]:
    """Let edits change the scores of the last token in their `scored_layers`, and read its attention, in this thread.

    Args:
        text_config: of the decoder.
        given: the arguments of `generate`; its `input_ids` tell how long the prompts are.
        edits: edits that do not act on attention are ignored.
        in_branches: the edits of branches, whose own threads activate them by `in_this_branch`.
    """
    active = [edit for edit in edits if edit.scored_layers or edit.watched_layers or edit.masked_layers]
    if not active and not any(in_branches):
        yield
        return
    usual = text_config._attn_implementation
    text_config._attn_implementation = {"": registered(usual, "scored", _attend)}
    if active:
        _active.edits, _active.prompt = active, given["input_ids"].shape[1]
    try:
        yield
    finally:
        _active.edits = ()
        text_config._attn_implementation = {"": usual}


@contextmanager
def in_this_branch(attention: AttentionEdit | None) -> Iterator[None]:
    """Let an edit act in the thread of a branch, while `edited_attention` holds for its answer."""
    _active.edits = () if attention is None else (attention,)
    try:
        yield
    finally:
        _active.edits = ()


def _attend(
    usual: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, Any]:
    layer: Any = module.layer_idx
    active: Sequence[AttentionEdit] = getattr(_active, "edits", ())
    for masking in active:
        if layer in masking.masked_layers:
            mask = _without(masking.hidden_columns(layer, query.shape[2], key.shape[2]), mask, usual, query)
    output, weights = usual_attention(usual, module, query, key, value, mask, **kwargs)
    scoring = [edit for edit in active if isinstance(edit, DecodingEdit) and layer in edit.scored_layers]
    # A prompt that runs in parts is scored with its last part alone.
    edits = [edit for edit in scoring if key.shape[2] >= _active.prompt]
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
    """Return the mask of columns that the last token sees, bool, to be broadcast over `[batch, heads, columns]`.

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


def _without(hidden: Tensor, mask: Any, usual: str, query: Tensor) -> Tensor:
    """Return a mask that hides columns from all queries but those of the same columns.

    Args:
        hidden: `[batch, columns]` bool.
        mask: the layer's own, `[batch or 1, 1, queries, columns]` bool or additive; None if it is causal alone.
        usual: the name of the attention implementation.
        query: `[batch, heads, queries, d]`.

    Raises:
        UsageError: the implementation does not take masks of this form.
    """
    if isinstance(mask, BlockMask) or "flex" in usual or "flash" in usual:
        raise UsageError(
            "image tokens cannot be hidden in flex and flash attention",
            where="attn_implementation",
            remedy="load the model with sdpa or eager attention",
        )
    queries, columns = query.shape[2], hidden.shape[1]
    causal = torch.ones(queries, columns, dtype=torch.bool, device=query.device).tril(columns - queries)
    # The row of a hidden token must attend to something, though its output is unused: softmax over nothing is NaN.
    others = ~causal.triu(columns - queries)
    hides = hidden.to(query.device)[:, None, None] & others
    mask = causal[None, None] if mask is None else mask[..., :columns]
    without: Tensor = (
        mask & ~hides if mask.dtype == torch.bool else mask.masked_fill(hides, torch.finfo(mask.dtype).min)
    )
    return without
