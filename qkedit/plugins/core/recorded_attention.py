"""The attention of chosen prompt columns to image tokens, computed from the queries and keys of a layer.

For each layer and each `Reading` (some query columns of a prompt, some key columns):

    score_j = mean over query heads h and queries i of  softmax_k(q_i^h · k^h / scale)_j      with k over all keys

Only the requested rows are computed, in float32, a bounded number at a time. An engine's adapter hands over queries
and keys of the layers in an `AttentionRecorder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

# The number of attention weights in memory at once: heads × queries × keys. 64 MB in float32.
BLOCK = 2**24


@dataclass(frozen=True)
class Reading:
    """The attention to average: from columns `queries` to columns `keys` of prompt `row`, int64."""

    row: int
    queries: Tensor
    keys: Tensor


@dataclass
class AttentionRecorder:
    """The attention recorded for `readings` in `layers`.

    Attributes:
        layers: the layers to record.
        readings: the attention to record in each layer.
        leave_after: the last layer that is needed: once it is recorded, `StopForward` is raised. None lets the run
            continue.
        scores: by layer, for each reading `[keys]` float32, on the layer's device.
    """

    layers: frozenset[int]
    readings: Sequence[Reading]
    leave_after: int | None = None
    scores: dict[int, list[Tensor]] = field(default_factory=dict)

    def mean(self) -> list[Tensor]:
        """Return the average over the layers, for each reading `[keys]` float32 on the CPU."""
        return [
            torch.stack([self.scores[layer][index].cpu() for layer in sorted(self.scores)]).mean(dim=0)
            for index in range(len(self.readings))
        ]


def attention_scores(
    readings: Sequence[Reading], query: Tensor, key: Tensor, mask: Any, settings: Mapping[str, Any]
) -> list[Tensor]:
    """Return the mean attention of every reading, `[keys]` float32.

    Args:
        readings: the attention to average.
        query: `[B, H, S, d]`, as it is multiplied with the keys.
        key: `[B, H_kv, S, d]`, without repetition.
        mask: the layer's mask, see `_masked`.
        settings: `scaling`, `softcap` and `sliding_window` of the layer, if it has them.
    """
    heads, size = query.shape[1], query.shape[-1]
    groups, length = key.shape[1], key.shape[2]
    scaling = settings.get("scaling") or size**-0.5
    softcap, window = settings.get("softcap"), settings.get("sliding_window")
    means = []
    for reading in readings:
        keys = key[reading.row].float().transpose(-1, -2)[:, None]  # [H_kv, 1, d, S]
        total = torch.zeros(reading.keys.numel(), device=query.device)
        wanted = reading.keys.to(query.device)
        for rows in reading.queries.to(query.device).split(max(1, BLOCK // (heads * length))):
            queries = query[reading.row, :, rows].float().unflatten(0, (groups, -1))  # [H_kv, H / H_kv, rows, d]
            logits = queries @ keys * scaling
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            logits = _masked(logits, mask, reading.row, rows, window)
            total += logits.softmax(dim=-1)[..., wanted].sum(dim=(0, 1, 2))
        means.append(total / (heads * reading.queries.numel()))
    return means


def _masked(logits: Tensor, mask: Any, row: int, rows: Tensor, window: int | None) -> Tensor:
    """Apply the layer's own masks to `[…, rows, keys]` logits.

    Args:
        logits: the logits of some rows.
        mask: the layer's mask: `[B or 1, 1, S, S]`, boolean or additive; a block mask for flex attention; or `[B, S]`
            for padding only, or None, for flash attention.
        row: the batch row.
        rows: the prompt columns of the logits.
        window: the number of columns that a sliding layer sees.
    """
    columns = torch.arange(logits.shape[-1], device=logits.device)
    if isinstance(mask, BlockMask):
        indices = torch.tensor(row, device=logits.device), torch.tensor(0, device=logits.device)
        return logits.masked_fill(~mask.mask_mod(*indices, rows[:, None], columns[None]), -torch.inf)
    if mask is not None and mask.ndim == 4:
        own = mask[min(row, mask.shape[0] - 1), 0, rows]
        return logits.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else logits + own
    allowed = columns <= rows[:, None]
    if window is not None:
        allowed &= columns > rows[:, None] - window
    if mask is not None:
        allowed &= mask[row].bool()
    return logits.masked_fill(~allowed, -torch.inf)
