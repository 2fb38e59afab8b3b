"""Generate greedy answers with the logits of every step, and prompts for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tests.plugins.tiny_requests import Prompt, model, two_prompts

STEPS = 5


def one_image_each(family: str) -> list[Prompt]:
    """Return prompts of different lengths with one image each."""
    first, second = two_prompts(family)
    return [first, Prompt((first.items[0], first.items[1], 9), seed=5) if len(second.items) > 3 else second]


def generated(family: str, inputs: Mapping[str, Any], **settings: Any) -> tuple[Tensor, list[Tensor]]:
    """Return the answers, and the logits of every step before `generate` processes them."""
    output = model(family).generate(
        **inputs,
        **{"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0, **settings},
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[:, inputs["input_ids"].shape[1] :], list(output.logits)
