"""Attention written out in matrices over the whole text, with scores that a test changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.plugins.tiny_requests import model


@contextmanager
def changed_scores(family: str, change: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Let the decoder of a tiny model compute its attention by matrices.

    Args:
        family: of the model.
        change: called with a layer and its scores before mask and softmax, `[batch, heads, rows, columns]`, which it
            may change in place.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        scores = query @ key.transpose(-1, -2) * settings["scaling"]
        layer: Any = module.layer_idx
        change(layer, scores)
        if mask is None:
            mask = torch.full(scores.shape[-2:], -torch.inf).triu(1)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("changed_scores", attend)
    AttentionMaskInterface.register("changed_scores", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    config = model(family).get_decoder().config
    usual = config._attn_implementation
    config._attn_implementation = {"": "changed_scores"}
    try:
        yield
    finally:
        config._attn_implementation = {"": usual}
