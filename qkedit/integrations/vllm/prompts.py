"""The whole prompts in one step of an engine: from its row of tokens to a batch and back.

An engine runs the tokens of many requests as one row, `[tokens, …]`. Plug-ins take prompts as a batch padded on the
left, `[batch, length, …]`. Only prompts that are whole in the step are in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

# No token has this id, so padding is not taken for an image.
PADDING = -1


@dataclass(frozen=True)
class WholePrompt:
    """A prompt that is whole in a step.

    Attributes:
        request: the engine's name of the request.
        first: the place of its first token in the step's row of tokens.
        tokens: its token ids.
        images: for each of its images the tensors of the image encoder, by name.
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
        """`[batch, length]` int64 on the CPU: the place of each column in the step's row; 0 for padding."""
        places = torch.zeros(len(self.prompts), self.length, dtype=torch.long)
        for row, prompt in enumerate(self.prompts):
            places[row, self.length - len(prompt.tokens) :] = prompt.first + torch.arange(len(prompt.tokens))
        return places

    def batched(self, states: Tensor) -> Tensor:
        """Return the prompts' part of `[tokens, …]` as `[batch, length, …]`; padding is 0."""
        real = self.real.to(states.device)
        batch = states[self.places.to(states.device)]
        return batch * real.view(*real.shape, *[1] * (states.ndim - 1)).to(states.dtype)

    def put_back(self, batch: Tensor, states: Tensor) -> Tensor:
        """Return a copy of `[tokens, …]` with the prompts' part from `[batch, length, …]`."""
        real = self.real.to(states.device)
        changed = states.clone()
        changed[self.places.to(states.device)[real]] = batch[real].to(states.dtype)
        return changed


def attention_rows(query: Tensor, key: Tensor, value: Tensor, first: int, scaling: float) -> Tensor:
    """Return the causal attention of the last queries of one prompt, `[queries, H, d]` in float32.

    Args:
        query: of the whole prompt, `[tokens, H, d]`.
        key: `[tokens, H_kv, d]`, without repetition.
        value: `[tokens, H_kv, d]`.
        first: the first query.
        scaling: the factor of the logits.
    """
    groups = key.shape[1]
    queries = query[first:].float().unflatten(1, (groups, -1)).permute(1, 2, 0, 3)  # [H_kv, H / H_kv, queries, d]
    logits = queries @ key.float().permute(1, 2, 0)[:, None] * scaling
    columns = torch.arange(len(key), device=query.device)
    logits = logits.masked_fill(columns > columns[first:, None], -torch.inf)
    found = logits.softmax(-1) @ value.float().permute(1, 0, 2)[:, None]
    return found.permute(2, 0, 1, 3).flatten(1, 2)
