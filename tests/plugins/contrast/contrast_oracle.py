"""Contrastive decoding as two loops over the whole text so far, without a cache: slow, and nothing to get wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

TYPES = ("token_type_ids", "mm_token_type_ids")


def next_logits(model: Any, inputs: Mapping[str, Any], answer: list[int]) -> Tensor:
    """Logits `[vocabulary]` after one prompt and the answer so far."""
    given = dict(inputs)
    new = torch.tensor([answer], dtype=torch.long)
    given["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    for name in TYPES:
        if name in given:
            given[name] = torch.cat([inputs[name], torch.zeros_like(new).to(inputs[name].dtype)], dim=1)
    with torch.no_grad():
        return model(**given, use_cache=False).logits[0, -1].float()


def contrasted(
    model: Any,
    inputs: Mapping[str, Any],
    branch: Mapping[str, Any],
    weight: Callable[[int], float],
    beta: float,
    steps: int,
) -> tuple[list[int], list[Tensor]]:
    """The greedy answer to one prompt, and the contrasted logits of every step."""
    answer: list[int] = []
    every: list[Tensor] = []
    for step in range(steps):
        own, other = next_logits(model, inputs, answer), next_logits(model, branch, answer)
        alpha = weight(step)
        probabilities = own.double().softmax(dim=-1)
        edited = (1 + alpha) * own - alpha * other
        edited[probabilities < beta * probabilities.max()] = -torch.inf
        every.append(edited)
        answer.append(int(edited.argmax()))
    return answer, every
