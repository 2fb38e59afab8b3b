"""The whole prompts in one step of an engine: convert its row of tokens to a batch, and back.

An engine runs the tokens of many requests as one row, `[tokens, …]`. Plug-ins take prompts as a batch padded on the
left, `[batch, length, …]`. The batch has only those prompts whose tokens are all in the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

PADDING = -1
"""The token id of padding. No token has it, so padding is not mistaken for an image."""


@dataclass(frozen=True)
class WholePrompt:
    """A prompt whose tokens are all in one step.

    Attributes:
        request: the engine's name of the request.
        first: the index of its first token in the step's row of tokens.
        tokens: its token ids.
        images: the inputs of the image encoder for each of its images, by name.
    """

    request: str
    first: int
    tokens: tuple[int, ...]
    images: tuple[dict[str, Any], ...] = field(repr=False)


@dataclass(frozen=True)
class PromptBatch:
    """The whole prompts of a step as a batch, padded on the left."""

    prompts: Sequence[WholePrompt]

    @property
    def length(self) -> int:
        """The number of columns."""
        return max(len(prompt.tokens) for prompt in self.prompts)

    @cached_property
    def input_ids(self) -> Tensor:
        """`[batch, length]` on the CPU."""
        rows = [[PADDING] * (self.length - len(prompt.tokens)) + list(prompt.tokens) for prompt in self.prompts]
        return torch.tensor(rows)

    @cached_property
    def real(self) -> Tensor:
        """`[batch, length]` bool on the CPU, False for padding."""
        return self.input_ids != PADDING

    @cached_property
    def places(self) -> Tensor:
        """`[batch, length]` int64 on the CPU: the index of each column in the step's row; 0 for padding."""
        places = torch.zeros(len(self.prompts), self.length, dtype=torch.long)
        for row, prompt in enumerate(self.prompts):
            places[row, self.length - len(prompt.tokens) :] = prompt.first + torch.arange(len(prompt.tokens))
        return places

    def batched(self, states: Tensor) -> Tensor:
        """Return the prompts' rows of `[tokens, …]` as `[batch, length, …]`, with zeros for padding."""
        real = self.real.to(states.device)
        batch = states[self.places.to(states.device)]
        return batch * real.view(*real.shape, *[1] * (states.ndim - 1)).to(states.dtype)

    def put_back(self, batch: Tensor, states: Tensor) -> Tensor:
        """Return a copy of `[tokens, …]` whose prompts' rows come from `[batch, length, …]`."""
        real = self.real.to(states.device)
        changed = states.clone()
        changed[self.places.to(states.device)[real]] = batch[real].to(states.dtype)
        return changed


def attention_rows(query: Tensor, key: Tensor, value: Tensor, first: int, scaling: float) -> Tensor:
    """Return the causal attention of the last queries of one prompt, `[queries, H, d]` in float32.

    Args:
        query: the queries of the whole prompt, `[tokens, H, d]`.
        key: its keys, `[tokens, H_kv, d]`.
        value: its values, `[tokens, H_kv, d]`.
        first: the index of the first query whose attention is returned.
        scaling: the factor of the logits.
    """
    groups = key.shape[1]
    queries = query[first:].float().unflatten(1, (groups, -1)).permute(1, 2, 0, 3)  # [H_kv, H / H_kv, queries, d]
    logits = queries @ key.float().permute(1, 2, 0)[:, None] * scaling
    columns = torch.arange(len(key), device=query.device)
    logits = logits.masked_fill(columns > columns[first:, None], -torch.inf)
    found = logits.softmax(-1) @ value.float().permute(1, 0, 2)[:, None]
    return found.permute(2, 0, 1, 3).flatten(1, 2)
