"""Target for every field of a request, in the parser alone."""

from __future__ import annotations

import json
from random import Random

from fuzzing.json_trees import written
from fuzzing.judging import attempt
from fuzzing.requests import MODEL, changed_request
from fuzzing.target import Outcome, Target
from qkedit.serving.requests.chat_request import parse_chat_request


class ChatRequest(Target):
    """Parses a request's body, which the server's framework reads as JSON."""

    name = "chat-request"
    subject = "every field of a chat completion request, in the parser"
    seconds = 5.0

    def generate(self, random: Random) -> bytes:
        """Return a request with a changed field or part."""
        return written(changed_request(random), random)

    def check(self, given: bytes) -> Outcome:
        """Parse the request if it is JSON."""
        try:
            body = json.loads(given)
        except (ValueError, RecursionError):
            return Outcome.REFUSED
        if not isinstance(body, dict):
            return Outcome.REFUSED
        return attempt(
            lambda: parse_chat_request(body, model=MODEL, plugins=("scr",), images=4, placeholders=("<image>",))
        )
