"""Simulate vLLM's server, which answers yes to every question; variables of the environment choose its faults.

Copied as `vllm/entrypoints/launchers/api_server/entry.py`, so nothing but the standard library is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

# The file for the ids of the processes and the command line of the server.
NOTES = Path(os.environ["PRETENDED_NOTES"])
FAILS_AT_START = os.environ.get("PRETENDED_START") == "fails"
ANSWERS = int(os.environ.get("PRETENDED_ANSWERS", "1000000"))
SECONDS = float(os.environ.get("PRETENDED_SECONDS", "0"))
_answered: list[str] = []
_asked: list[str] = []
_lock = Lock()


class Handler(BaseHTTPRequestHandler):
    """Handle requests: ready at the third health check, and ended after the allowed number of answers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/qkedit":
            self.send(200, {"workers": [{"failed": 2, "failure": "no depth", "split": 0}]})
            return
        _asked.append(self.path)
        self.send(200 if self.path == "/health" and len(_asked) > 2 else 503, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":  # like a model whose tokenizer begins with <s>, but not its template
            self.send(200, {"tokens": [1] * body["add_special_tokens"] + [5, 6]})
            return
        time.sleep(SECONDS)
        with _lock:
            if len(_answered) >= ANSWERS:
                os._exit(1)
            _answered.append(body["model"])
            message = {"role": "assistant", "content": "Yes." if body.get("add_special_tokens") else "No."}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.send(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})

    def send(self, status: int, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    NOTES.write_text(json.dumps({"ids": [os.getpid(), worker.pid], "arguments": sys.argv[1:]}))
    with NOTES.with_suffix(".lines").open("a") as started:
        started.write(json.dumps(sys.argv[1:]) + "\n")
    if FAILS_AT_START:
        sys.exit("Traceback …\nValueError: no memory is left for the cache.\nRuntimeError: see above")
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
