"""A valid request, and mutations of it."""

from __future__ import annotations

import base64
from random import Random
from typing import Any

from fuzzing.json_trees import mutated_tree
from fuzzing.picture_bytes import picture, png
from fuzzing.strange import strange_value
from qkedit.demo import SMALL_DEMO

MODEL = SMALL_DEMO
# Every field of OpenAI's API, and qkedit's own.
FIELDS = (
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream",
    "stream_options", "n", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty", "logit_bias", "tools",
    "tool_choice", "functions", "function_call", "response_format", "modalities", "audio", "prediction",
    "reasoning_effort", "web_search_options", "user", "metadata", "store", "service_tier", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention", "verbosity", "moderation", "parallel_tool_calls", "qkedit", "other",
)  # fmt: skip


def request(content: bytes) -> dict[str, Any]:
    """Return a valid request with a picture."""
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
                    {"type": "text", "text": "Is there a circle?"},
                ],
            },
        ],
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["."],
        "stream": False,
        "qkedit": {"plugins": []},
    }


def changed_request(random: Random) -> Any:
    """Return a request with a field, any part of it, or its picture changed; it may hold `Raw` text."""
    body = request(picture(random) if random.random() < 0.15 else png(8, 8))
    if random.random() < 0.3:
        body["stream"] = True
    kind = random.randrange(3)
    if kind == 0:
        body[random.choice(FIELDS)] = strange_value(random)
    elif kind == 1:
        body["messages"] = mutated_tree(body["messages"], random)
    else:
        return mutated_tree(body, random)
    return body
