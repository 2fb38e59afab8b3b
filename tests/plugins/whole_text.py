"""Run the model over the whole text so far, without a cache: slow and simple."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

TYPES = ("token_type_ids", "mm_token_type_ids")


def whole_text(
    model: Any, inputs: Mapping[str, Any], answer: Sequence[int] | Sequence[Sequence[int]], **settings: Any
) -> Any:
    """Return the model's output for one prompt and the answer so far, or for several of the same length."""
    given, rows = dict(inputs), len(inputs["input_ids"])
    new = torch.tensor(answer, dtype=torch.long)
    new = new.view(rows, new.numel() // rows)
    given["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    for name in TYPES:
        if name in given:
            given[name] = torch.cat([inputs[name], torch.zeros_like(new).to(inputs[name].dtype)], dim=1)
    with torch.no_grad():
        return model(**given, use_cache=False, **settings)
