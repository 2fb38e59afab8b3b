"""Compute attention with explicit matrices over the whole text, so that tests can change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.plugins.tiny_requests import model

# A function of a layer, its query, key and value `[batch, heads, rows, d]` (keys and values repeated per query
# head), an additive mask `[batch or 1, 1, rows, columns]` and the scale; it returns `[batch, heads, rows, d]`.
Attention = Callable[[int, Tensor, Tensor, Tensor, Tensor, float], Tensor]


@contextmanager
def attention_by(family: str, attention: Attention) -> Iterator[None]:
    """Compute the attention of a tiny model's decoder by a given function."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        if mask is None:
            mask = torch.full((1, 1, query.shape[2], key.shape[2]), -torch.inf).triu(1)
        elif mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        layer: Any = module.layer_idx
        output = attention(layer, query, key, value, mask, settings["scaling"])
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register("written_out", attend)
    AttentionMaskInterface.register("written_out", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    config = model(family).get_decoder().config
    usual = config._attn_implementation
    config._attn_implementation = {"": "written_out"}
    try:
        yield
    finally:
        config._attn_implementation = {"": usual}


def changed_scores(family: str, change: Callable[[int, Tensor], None]) -> AbstractContextManager[None]:
    """Compute the attention of a tiny model's decoder by explicit matrices.

    Args:
        family: the family of the model.
        change: a function of a layer and its scores before mask and softmax, `[batch, heads, rows, columns]`, which
            it may change in place.
    """

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        scores = query @ key.transpose(-1, -2) * scale
        change(layer, scores)
        return (scores + mask).softmax(dim=-1) @ value

    return attention_by(family, attention)
