"""Parse the body of a chat completion request, and refuse in one sentence what the server does not support.

    {"model": "edited", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}, {"type": "text", "text": "…"}]}],
     "max_tokens": 64, "temperature": 0, "seed": 1, "stop": ["\\n"], "stream": true, "qkedit": {"plugins": ["scr"]}}

This is OpenAI's format with the additional field `qkedit`. A field that is known but not supported is accepted with a
value that has no effect, since clients send such fields by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qkedit.serving.requests.request_errors import RequestError
from qkedit.serving.requests.request_fields import check_fields, cut, shown

# OpenAI calls the system role "developer" in newer models; chat templates use the older name.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
STOPS, STOP_LENGTH = 4, 100


@dataclass(frozen=True)
class ImageUrl:
    """An image by its URL, which may contain the image itself (`data:`)."""

    url: str


@dataclass(frozen=True)
class Message:
    """One turn: its role, and its texts and images in order."""

    role: str
    content: tuple[str | ImageUrl, ...]


@dataclass(frozen=True)
class Decoding:
    """The decoding settings of an answer; None means the model's own setting.

    Attributes:
        max_tokens: the maximum length of the answer.
        temperature: 0 for greedy search, more for sampling.
        top_p: sample among the likeliest tokens with this share of the probability.
        seed: the seed of sampling.
        stop: the texts that end the answer.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatRequest:
    """A request with a valid body, before its images are checked.

    Attributes:
        messages: the turns.
        decoding: the decoding settings.
        stream: whether to stream the answer.
        plugins: the names of the plug-ins to use, in order.
    """

    messages: tuple[Message, ...]
    decoding: Decoding
    stream: bool
    plugins: tuple[str, ...]

    @property
    def images(self) -> tuple[ImageUrl, ...]:
        """All images in order."""
        return tuple(part for message in self.messages for part in message.content if isinstance(part, ImageUrl))

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts in order."""
        return tuple(part for message in self.messages for part in message.content if isinstance(part, str))


def parse_chat_request(
    body: Mapping[str, Any], *, model: str, plugins: Sequence[str], images: int, placeholders: Sequence[str] = ()
) -> ChatRequest:
    """Check and parse a request's body.

    Args:
        body: the JSON object.
        model: the name of the served model.
        plugins: the names of the server's plug-ins, in order; all are used unless the request names some.
        images: the maximum number of images in a request.
        placeholders: the processor's placeholders for an image, which texts must not contain.

    Raises:
        RequestError: the request cannot be served.
    """
    check_fields(body)
    if body.get("model", model) != model:
        raise RequestError(
            f"there is no model {shown(body['model'])}",
            where="model",
            remedy=f"this server has {model!r}",
            status=404,
            code="model_not_found",
        )
    request = ChatRequest(
        messages=_messages(body.get("messages")),
        decoding=_decoding(body),
        stream=_boolean(body.get("stream"), "stream"),
        plugins=_plugins(body.get("qkedit"), plugins),
    )
    if len(request.images) > images:
        raise RequestError(
            f"{len(request.images)} images are more than this server's limit of {images}",
            where="messages",
            remedy="send fewer",
        )
    for placeholder in placeholders:
        if any(placeholder in text for text in request.texts):
            raise RequestError(
                f"a text contains {placeholder!r}, which is this model's placeholder for an image",
                where="messages",
                remedy="remove it; send images as image_url parts",
            )
    return request


def _messages(given: Any) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise RequestError("is not a list of messages", where="messages", remedy="send at least one")
    messages = tuple(_message(message, f"messages[{number}]") for number, message in enumerate(given))
    if messages[-1].role == "assistant":
        raise RequestError("the last turn is the assistant's", where="messages", remedy="end with the user's")
    return messages


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise RequestError("is not a message", where=where, remedy='write {"role": "user", "content": "…"}')
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{shown(role)} is not a role", where=f"{where}.role", remedy=f"give {', '.join(ROLES)}")
    for key, value in given.items():
        # Clients send a turn of the assistant back as they got it, with empty fields.
        if key not in ("role", "content", "name") and value not in (None, [], ""):
            raise RequestError("the field is not supported", where=f"{where}.{cut(key)}", remedy="leave it out")
    content = given.get("content")
    if isinstance(content, str):
        return Message(ROLES[role], (content,))
    if not isinstance(content, list) or not content:
        raise RequestError("is neither text nor a list of parts", where=f"{where}.content", remedy="send either")
    return Message(
        ROLES[role], tuple(_part(part, f"{where}.content[{number}]") for number, part in enumerate(content))
    )


def _part(given: Any, where: str) -> str | ImageUrl:
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text" and isinstance(given.get("text"), str):
        text: str = given["text"]
        return text
    if kind == "image_url":
        image = given.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if isinstance(url, str):
            return ImageUrl(url)
    raise RequestError(
        "is not a supported part",
        where=where,
        remedy='write {"type": "text", "text": "…"} or {"type": "image_url", "image_url": {"url": "data:…"}}',
    )


def _decoding(body: Mapping[str, Any]) -> Decoding:
    longest = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    return Decoding(
        max_tokens=_whole(body.get(longest), longest, 1, 1 << 31),
        temperature=_number(body.get("temperature"), "temperature", 0, 2),
        # 0 would leave no token to sample.
        top_p=_number(body.get("top_p"), "top_p", 1e-6, 1),
        # The range of PyTorch's generators.
        seed=_whole(body.get("seed"), "seed", -(1 << 63), (1 << 64) - 1),
        stop=_stops(body.get("stop")),
    )


def _whole(given: Any, where: str, least: int, most: int) -> int | None:
    if given is None or (type(given) is int and least <= given <= most):
        return given
    raise RequestError(f"is not a whole number from {least} to {most}", where=where, remedy="correct it")


def _number(given: Any, where: str, least: float, most: float) -> float | None:
    if given is None:
        return None
    # NaN is not between any two numbers.
    if type(given) in (int, float) and least <= given <= most:
        return float(given)
    raise RequestError(f"is not a number from {least:g} to {most:g}", where=where, remedy="correct it")


def _boolean(given: Any, where: str) -> bool:
    if given is None or isinstance(given, bool):
        return bool(given)
    raise RequestError("is neither true nor false", where=where, remedy="correct it")


def _stops(given: Any) -> tuple[str, ...]:
    stops = [] if given is None else [given] if isinstance(given, str) else given
    if (
        isinstance(stops, list)
        and len(stops) <= STOPS
        and all(isinstance(stop, str) and 0 < len(stop) <= STOP_LENGTH for stop in stops)
    ):
        return tuple(stops)
    raise RequestError(
        f"is neither a text nor up to {STOPS} texts of 1 to {STOP_LENGTH} characters",
        where="stop",
        remedy="correct it",
    )


def _plugins(given: Any, plugins: Sequence[str]) -> tuple[str, ...]:
    if given is None:
        return tuple(plugins)
    if not isinstance(given, dict) or not given.keys() <= {"plugins"}:
        raise RequestError('is not of the form {"plugins": ["…"]}', where="qkedit", remedy="correct it")
    named = given.get("plugins")
    if named is None:
        return tuple(plugins)
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise RequestError("is not a list of names", where="qkedit.plugins", remedy='write ["scr"], or [] for none')
    for name in named:
        if name not in plugins:
            raise RequestError(
                f"this server has no plug-in {shown(name)}",
                where="qkedit.plugins",
                remedy=f"it has {', '.join(plugins) or 'none'}",
            )
    if len(set(named)) < len(named):
        raise RequestError("a plug-in is named twice", where="qkedit.plugins", remedy="name each once")
    return tuple(named)
