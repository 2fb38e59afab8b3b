"""Target for whole requests to a running server of the demo."""

from __future__ import annotations

import json
from random import Random

from fuzzing.json_trees import written
from fuzzing.requests import changed_request
from fuzzing.server import check_message, demo_server
from fuzzing.target import Finding, Outcome, Target


class Chat(Target):
    """Sends requests to a server; the response must be an answer, or 4xx with a sentence."""

    name = "chat"
    subject = "every field of a chat completion request, pictures included, to a running server"
    seconds = 90.0

    def prepare(self) -> None:
        """Start the server, or take the one that is running."""
        self._server = demo_server()

    def generate(self, random: Random) -> bytes:
        """Return a request with a changed field or part."""
        return written(changed_request(random), random)

    def check(self, given: bytes) -> Outcome:
        """Send the request."""
        received = self._server.post(given)
        outcome = self._server.judged(received)
        if outcome is Outcome.REFUSED and received:
            head, _, body = received.partition(b"\r\n\r\n")
            try:
                message = json.loads(body)["error"]["message"]
            except (ValueError, LookupError, TypeError):
                raise Finding("sentence", ascii((head[:200] + body[:600]).decode("utf-8", "replace"))) from None
            check_message(message)
        return outcome
