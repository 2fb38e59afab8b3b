"""OpenAI's client with a limit on the size of responses, so that an endless response cannot fill the memory.

Needs the package openai.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import openai

from qkedit.errors import QkeditError, first_sentence

# The longest answers have a few hundred thousand characters, and a token's fields take a few hundred bytes.
LARGEST_RESPONSE = 16 * 2**20
_MOST_REDIRECTS = 5
_BUSY = (429, 503)
_OF_THE_WAY = ("content-encoding", "content-length", "transfer-encoding")


class TooLongError(openai.OpenAIError):
    """A server sent more than the limit for a response."""


class TooSlowError(openai.OpenAIError):
    """A server did not complete its response in time, although it kept sending."""


def bounded_client(
    base_url: str, key: str, *, retries: int, timeout: float, on_refusal: Callable[[], None] = lambda: None
) -> openai.OpenAI:
    """Return a client for a server.

    Args:
        base_url: the server's URL.
        key: the API key.
        retries: the number of times a request is sent again.
        timeout: seconds until a request counts as failed.
        on_refusal: called whenever the server says that it is busy, even if the request is sent again.

    Raises:
        QkeditError: the environment names a proxy or certificates that cannot be used.
    """
    try:
        http_client = BoundedHttpClient(timeout, on_refusal)
    except Exception as error:  # an invalid proxy address raises an exception class of its own
        raise QkeditError(
            f"the connection cannot be prepared ({first_sentence(error)})",
            where="--endpoint",
            remedy="correct the variables of proxies and certificates (HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE)",
        ) from error
    return openai.OpenAI(base_url=base_url, api_key=key, max_retries=retries, timeout=timeout, http_client=http_client)


class BoundedHttpClient(openai.DefaultHttpxClient):
    """The HTTP client of the package openai, whichever library it is built on, with limits on what it reads.

    Args:
        seconds: the time limit for a whole response.
        on_refusal: called for every response with status 429 or 503.
    """

    def __init__(self, seconds: float, on_refusal: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._seconds = seconds
        self._on_refusal = on_refusal

    def send(self, request: Any, *, stream: bool = False, **settings: Any) -> Any:
        """Send a request and read the response up to the limit.

        Raises:
            TooLongError: the response is longer, after decompression.
            TooSlowError: the response is not complete in time.
        """
        deadline = time.monotonic() + self._seconds
        # A redirect has a body, too, which the library would read to its end.
        response = super().send(request, **{**settings, "stream": True, "follow_redirects": False})
        for _ in range(_MOST_REDIRECTS):
            if response.next_request is None:
                break
            response.close()
            response = super().send(response.next_request, **{**settings, "stream": True, "follow_redirects": False})
        if response.status_code in _BUSY:
            self._on_refusal()
        if stream:
            return response
        content = bytearray()
        try:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > LARGEST_RESPONSE:
                    raise TooLongError
                if time.monotonic() > deadline:
                    raise TooSlowError
        finally:
            response.close()
        # The body is decompressed now, so the header no longer applies.
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _OF_THE_WAY]
        return type(response)(
            response.status_code,
            headers=headers,
            content=bytes(content),
            request=response.request,
            extensions=response.extensions,
        )
