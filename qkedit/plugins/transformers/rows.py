"""Run a model token by token on rows that a search makes, drops and exchanges: a decoding loop outside transformers.

`generate` prepares everything as usual and calls a loop of ours (`custom_generate`) instead of one of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

# Inputs per token other than its number, which every new token needs, too.
_POSITIONS, _MASK = "position_ids", "attention_mask"
# Marks the tokens of pictures, which new ones are not; in others of the kind, a new token is like the last one.
_PICTURE_TYPES = "mm_token_type_ids"
_TYPES = "token_type_ids"


class Prefilled:
    """Prompts that a model has read, from each of which searches may start.

    Args:
        model: the model.
        ids: `[batch, length]`, padded on the left.
        arguments: what `generate` gives to a decoding loop for the model, the cache included.
    """

    def __init__(self, model: Any, ids: Tensor, arguments: Mapping[str, Any]) -> None:
        given = model.prepare_inputs_for_generation(ids, is_first_iteration=True, **arguments)
        output = model(**given, return_dict=True)
        self.model, self.ids = model, ids
        self.logits = _last_logits(output, ids)  # [batch, vocabulary], of the answers' first tokens
        self.cache = output.past_key_values
        self._arguments = arguments

    def rows(self, prompt: int, count: int) -> PromptRows:
        """Return `count` rows that continue one prompt, with a cache of their own."""
        cache = deepcopy(self.cache)
        cache.reorder_cache(torch.full((count,), prompt, device=self.ids.device))
        logits = self.logits[prompt].expand(count, -1)
        return PromptRows(self.model, self._of_prompt(prompt), cache, logits, self.ids[prompt].expand(count, -1))

    def _of_prompt(self, prompt: int) -> dict[str, Any]:
        """Return the arguments that later passes need, those per token for one prompt, `[…, 1, length]`."""
        kept: dict[str, Any] = {}
        for name, value in self._arguments.items():
            if not isinstance(value, Tensor):
                # Pictures and their features are in the cache.
                if value is None or isinstance(value, bool | int | float | str):
                    kept[name] = value
            elif name == _POSITIONS:  # [batch, length], or one of these for each axis
                own = slice(prompt, prompt + 1) if value.shape[-2] == len(self.ids) else slice(0, 1)
                kept[name] = value[..., own, :]
            elif name == _MASK or name.endswith(_TYPES):
                kept[name] = value[prompt : prompt + 1]
        return kept


class PromptRows:
    """Rows of text after one prompt, with their cache.

    Attributes:
        ids: `[rows, length]`, prompt and answer so far.
        logits: `[rows, vocabulary]` float32, of the next token.
    """

    def __init__(self, model: Any, arguments: Mapping[str, Any], cache: Any, logits: Tensor, ids: Tensor) -> None:
        self.ids, self.logits = ids, logits
        self._model, self._arguments, self._cache = model, arguments, cache
        self._prompt = ids.shape[1]

    def select(self, rows: Tensor) -> None:
        """Replace the rows by those of these indices, any number of which may be the same."""
        self._cache.reorder_cache(rows)
        self.ids, self.logits = self.ids[rows], self.logits[rows]

    def feed(self, tokens: Tensor) -> None:
        """Continue each row with a token, `[rows]`."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        given = self._model.prepare_inputs_for_generation(
            self.ids, next_sequence_length=1, past_key_values=self._cache, **self._of_last_token()
        )
        output = self._model(**given, return_dict=True)
        self._cache = output.past_key_values
        self.logits = _last_logits(output, self.ids)

    def _of_last_token(self) -> dict[str, Any]:
        rows, new = self.ids.shape[0], self.ids.shape[1] - self._prompt
        given = {name: value for name, value in self._arguments.items() if name != "past_key_values"}
        for name, value in given.items():
            if not isinstance(value, Tensor):
                continue
            shape = (*value.shape[:-2], rows, 1)
            if name == _POSITIONS:
                given[name] = (value[..., -1:] + new).expand(shape)
            elif name == _MASK:
                given[name] = torch.cat([value, value.new_ones(1, new)], dim=1).expand(rows, -1)
            else:
                given[name] = value.new_zeros(shape) if name == _PICTURE_TYPES else value[..., -1:].expand(shape)
        return given


def _last_logits(output: Any, ids: Tensor) -> Tensor:
    """Return the last column's logits, float32 on the tokens' device; a copy, so that the others can be freed."""
    logits: Tensor = output.logits[:, -1]
    return logits.to(ids.device, torch.float32, copy=True)
