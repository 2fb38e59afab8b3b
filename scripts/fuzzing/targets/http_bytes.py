"""Target for bytes that are almost HTTP."""

from __future__ import annotations

import json
from random import Random

from fuzzing.byte_strings import mutated
from fuzzing.picture_bytes import png
from fuzzing.requests import request
from fuzzing.server import demo_server
from fuzzing.target import Finding, Outcome, Target

PATHS = (
    "/health",
    "/v1/models",
    "/v1/models/demo-small",
    "/metrics",
    "/v1/chat/completions",
    "/",
    "/v1/responses",
    "/load_model",
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class HttpBytes(Target):
    """Sends changed requests, and asks for the server's health after each."""

    name = "http-bytes"
    subject = "raw bytes to a running server: methods, paths, headers, lengths, chunks"
    seconds = 90.0

    def prepare(self) -> None:
        """Start the server, or take the one that is running."""
        self._server = demo_server()

    def generate(self, random: Random) -> bytes:
        """Return a request with changed bytes."""
        body = json.dumps(request(png(4, 4))).encode()
        method = random.choice(("GET", "POST", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "get", "TRACE", "CONNECT"))
        path = random.choice(PATHS) + random.choice(("", "", "?a=1", "%00", "%ff", "/../x", "//", "\u00fc"))
        length = random.choice((len(body), len(body), 0, -1, len(body) + 1, 2**63, 10**30, "x", "+5", "0x5"))
        lines = [
            f"{method} {path} {random.choice(('HTTP/1.1', 'HTTP/1.1', 'HTTP/1.0', 'HTTP/2', 'HTTP/9.9'))}",
            f"Host: {random.choice(('127.0.0.1', 'localhost', 'localhost', 'x'))}",
        ]
        if random.random() < 0.7:
            lines.append(f"Content-Length: {length}")
        if random.random() < 0.2:
            lines.append(
                random.choice(("Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Expect: 100-continue"))
            )
        if random.random() < 0.2:
            lines.append(
                random.choice(("Upgrade: websocket\r\nConnection: Upgrade", "Content-Type: text/plain", "A" * 70_000))
            )
        lines.append("Connection: close")
        content = "\r\n".join(lines).encode() + b"\r\n\r\n" + (body if method == "POST" else b"")
        return mutated(content, random) if random.random() < 0.6 else content

    def check(self, given: bytes) -> Outcome:
        """Send the bytes, then check the server's health."""
        outcome = self._server.judged(self._server.exchange(given, whole=False))
        if self._server.judged(self._server.exchange(HEALTH)) is not Outcome.ACCEPTED:
            raise Finding("health", "the server is not healthy")
        return outcome
