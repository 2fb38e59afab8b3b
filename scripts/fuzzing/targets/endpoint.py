"""Target for the replies of a server to `qkedit eval --endpoint`."""

from __future__ import annotations

import json
import socket
import threading
from random import Random
from typing import Any

from fuzzing.byte_strings import mutated
from fuzzing.json_trees import mutated_tree, written
from fuzzing.judging import attempt
from fuzzing.picture_bytes import png
from fuzzing.sandbox import Sandbox
from fuzzing.target import Finding, Outcome, Target
from qkedit.evaluation.benchmarks.registry import benchmark_named
from qkedit.evaluation.files.result_files import read_scores
from qkedit.evaluation.runs.endpoint import Endpoint
from qkedit.evaluation.runs.evaluate import evaluate
from qkedit.evaluation.runs.tasks import tasks_of

COMPLETION = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
QUESTION = {"id": "a", "image": "a.png", "question": "Is there a bus?", "truth": "no"}


class EndpointReplies(Target):
    """Evaluates one question; a finished run must have a text as its answer, and can be run again."""

    name = "endpoint"
    subject = "replies of an endpoint to `eval --endpoint`: status, headers, JSON, any bytes"

    def prepare(self) -> None:
        """Write a question and its picture, and start a server."""
        self.work.mkdir(exist_ok=True)
        (self.work / "questions.jsonl").write_text(json.dumps(QUESTION) + "\n", encoding="utf-8")
        (self.work / "a.png").write_bytes(png(4, 4))
        self._reply = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop the server."""
        self._listening.close()

    def generate(self, random: Random) -> bytes:
        """Return a reply with changed JSON, headers or bytes."""
        body = written(mutated_tree(COMPLETION, random), random)
        status = random.choice((200, 200, 200, 200, 200, 201, 204, 301, 307, 400, 401, 404, 429, 500, 503, 999))
        kind = random.choice(("application/json", "application/json", "text/html", "text/event-stream", "x"))
        length = random.choice((len(body), len(body), len(body), len(body) + 5, max(0, len(body) - 5)))
        extra = random.choice(
            ("", "", "", "Location: http://127.0.0.1:1/x\r\n", "Content-Encoding: gzip\r\n", "Retry-After: 1e9\r\n")
        )
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{extra}"
        reply = f"{head}Connection: close\r\n\r\n".encode() + body
        return mutated(reply, random) if random.random() < 0.2 else reply

    def check(self, given: bytes) -> Outcome:
        """Evaluate, and once more in the directory of the first run."""
        sandbox = Sandbox(self.work / "case")
        out = sandbox.directory / "run"
        self._reply = given
        sandbox.remember()
        outcome = attempt(lambda: self._evaluate(out))
        sandbox.check(out)
        if outcome is Outcome.ACCEPTED:
            for line in (out / "answers" / "custom.jsonl").read_text("utf-8").splitlines():
                if not isinstance(json.loads(line)["answer"], str):
                    raise Finding("oracle", f"an answer that is not text: {line[:300]!a}")
            if attempt(lambda: self._evaluate(out)) is not Outcome.ACCEPTED:
                raise Finding("partial", "the finished run cannot be run again")
            read_scores(out)
        return outcome

    def _evaluate(self, out: Any) -> Any:
        host, port = self._listening.getsockname()
        endpoint = Endpoint(f"http://{host}:{port}", "m", concurrency=1, retries=0, timeout=5.0)
        parts = tasks_of(benchmark_named("custom"), self.work / "questions.jsonl", [], max_new_tokens=4)
        return evaluate(endpoint, parts, self.work, out)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                try:
                    self._read_request(connection)
                    connection.sendall(self._reply)
                    connection.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # the client has disconnected

    def _read_request(self, connection: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            piece = connection.recv(1 << 16)
            if not piece:
                return
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        lengths = [
            line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        ]
        left = int(lengths[0]) - len(body) if lengths else 0
        while left > 0 and (piece := connection.recv(1 << 16)):
            left -= len(piece)
