"""Compute contrastive decoding with two runs over the whole text per token, without a cache: slow and simple."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.plugins.whole_text import whole_text


def contrasted(
    model: Any,
    inputs: Mapping[str, Any],
    branch: Mapping[str, Any],
    weight: Callable[[int], float],
    beta: float,
    steps: int,
    own_weight: float | None = None,
) -> tuple[list[int], list[Tensor]]:
    """Return the greedy answer to one prompt, and the contrasted logits of every step."""
    answer: list[int] = []
    every: list[Tensor] = []
    for step in range(steps):
        own, other = (whole_text(model, given, answer).logits[0, -1].float() for given in (inputs, branch))
        alpha = weight(step)
        probabilities = own.double().softmax(dim=-1)
        edited = (1 + alpha if own_weight is None else own_weight) * own - alpha * other
        edited[probabilities < beta * probabilities.max()] = -torch.inf
        every.append(edited)
        answer.append(int(edited.argmax()))
    return answer, every
