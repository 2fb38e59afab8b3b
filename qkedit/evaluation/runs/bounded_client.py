"""OpenAI's client, which takes responses up to a bound: a server that sends without end fills no memory.

Needs the package openai.
"""

from __future__ import annotations

from typing import Any

import openai

# The longest answers of models have some hundred thousand characters, and a token's fields take some hundred bytes.
LARGEST_RESPONSE = 16 * 2**20
_OF_THE_WAY = ("content-encoding", "content-length", "transfer-encoding")


class TooLongError(openai.OpenAIError):
    """A server sent more than a response may have."""


class BoundedHttpClient(openai.DefaultHttpxClient):
    """The HTTP client that openai brings, whichever library it is built on, with a bound on what it reads."""

    def send(self, request: Any, *, stream: bool = False, **settings: Any) -> Any:
        """Send a request and read the response as far as it may go.

        Raises:
            TooLongError: there is more, after any unpacking.
        """
        response = super().send(request, stream=True, **settings)
        if stream:
            return response
        content = bytearray()
        try:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > LARGEST_RESPONSE:
                    raise TooLongError
        finally:
            response.close()
        # How the body was packed on its way is no longer true of it.
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _OF_THE_WAY]
        return type(response)(
            response.status_code,
            headers=headers,
            content=bytes(content),
            request=response.request,
            extensions=response.extensions,
        )
