"""The fields of a chat completion request, and the checks that concern all of them alike."""

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
# What changes nothing about the answer here; usage is reported with and without being asked for.
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
# Known to OpenAI and not served, with the value that asks for nothing.
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
    """Raise RequestError for a field that is not known, or asks for what is not served, or holds broken text."""
    _check_text(body)
    for key, value in body.items():
        if key in SERVED or key in LET_PASS:
            continue
        if key not in NOT_SERVED:
            raise RequestError(
                "the field is not known", where=cut(key), remedy=f"this server knows {', '.join(SERVED)}"
            )
        asks = value is not None and value != NOT_SERVED[key] and value != [] and not (key == "tool_choice" == value)
        # Without tools there is nothing to choose from.
        if asks and not (key in ("tool_choice", "function_call") and value == "auto"):
            raise RequestError("the field is not served", where=key, remedy="leave it out")


def shown(value: Any) -> str:
    """Return what a client has sent as an error quotes it: in one line that is not long."""
    return cut(repr(value))


def cut(text: str) -> str:
    """Return a text of a client's as a part of a sentence, which is not long."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _check_text(body: Mapping[str, Any]) -> None:
    """Raise RequestError for half a surrogate pair, which JSON can write (`"\\ud83d"`) and no text can hold.

    Tokenizers, and the answer that would quote it, fail on it.
    """
    left: list[tuple[str, Any]] = [("body", dict(body))]
    while left:
        where, value = left.pop()
        if isinstance(value, str):
            # A quick way to ask: almost all texts are sound, and one may be an image of many megabytes.
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
