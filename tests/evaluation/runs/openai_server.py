"""A loopback server with OpenAI's protocol and prepared answers."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Sent = tuple[int, Any]


class Server:
    """A loopback server with OpenAI's protocol; `reply` returns the status and body of each answer."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Sent]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models = ["edited"]
        self.packs = False
        self.sends: dict[str, str] = {}
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = self.path == "/v1/models"
                models = [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in server.models]
                self._send(200 if found else 404, {"object": "list", "data": models} if found else {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.bodies.append(body)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    number = len(server.bodies) - 1
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                try:
                    status, answer = reply(body, number)
                finally:
                    with server._lock:
                        server._at_once -= 1
                self._send(status, answer)

            def _send(self, status: int, answer: Any) -> None:
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                content = gzip.compress(content) if server.packs else content
                kind = "text/html" if isinstance(answer, bytes) else "application/json"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("retry-after-ms", "1")
                for name, value in server.sends.items():
                    self.send_header(name, value)
                if server.packs:
                    self.send_header("Content-Encoding", "gzip")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # who hung up
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any], int], Sent]], Server]]:
    servers: list[Server] = []

    def start(reply: Callable[[dict[str, Any], int], Sent]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def chat_completion(text: Any, finish_reason: Any = "stop") -> Sent:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "edited", "choices": [choice]}
