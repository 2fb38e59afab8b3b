"""The fields of a chat completion request, and the checks common to all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qkedit.serving.requests.request_errors import RequestError

SERVED = (
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stream",
    "qkedit",
)
# Fields without an effect on the answer here; usage is always reported.
LET_PASS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "verbosity",
    "stream_options",
    "parallel_tool_calls",
)
# OpenAI's fields that are not supported, each with the value that has no effect.
NOT_SERVED: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "audio": None,
    "prediction": None,
    "reasoning_effort": None,
    "web_search_options": None,
}
_SHOWN = 60


def check_fields(body: Mapping[str, Any]) -> None:
    """Raise RequestError for a field that is unknown or not supported, or that contains broken text."""
    _check_text(body)
    for key, value in body.items():
        if key in SERVED or key in LET_PASS:
            continue
        if key not in NOT_SERVED:
            raise RequestError(
                "the field is unknown", where=cut(key), remedy=f"this server supports {', '.join(SERVED)}"
            )
        asks = value is not None and value != NOT_SERVED[key] and value != [] and not (key == "tool_choice" == value)
        # Without tools there is nothing to choose from.
        if asks and not (key in ("tool_choice", "function_call") and value == "auto"):
            raise RequestError("the field is not supported", where=key, remedy="leave it out")


def shown(value: Any) -> str:
    """Return a client's value for an error message, on one line and shortened."""
    return cut(repr(value))


def cut(text: str) -> str:
    """Return a client's text for an error message, shortened."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _check_text(body: Mapping[str, Any]) -> None:
    """Raise RequestError for a lone surrogate, which JSON can write (`"\\ud83d"`) and no encoded text can contain.

    Tokenizers, and an answer that quotes it, fail on it.
    """
    left: list[tuple[str, Any]] = [("body", dict(body))]
    while left:
        where, value = left.pop()
        if isinstance(value, str):
            # A quick check first: almost all texts are valid, and one may be an image of many megabytes.
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise RequestError(
                    f"a text holds half a character (U+{ord(value[error.start]):04X})",
                    where=where,
                    remedy="send the whole surrogate pair, or UTF-8",
                ) from None
        elif isinstance(value, dict):
            left += [(where, key) for key in value]
            left += [(key if where == "body" else where, inner) for key, inner in value.items()]
        elif isinstance(value, list):
            left += [(where, inner) for inner in value]
