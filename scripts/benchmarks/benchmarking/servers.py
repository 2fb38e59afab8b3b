"""Run servers as processes of their own: start them, send requests, measure their memory, and stop them."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

OURS = "from qkedit.cli.app import run; run()"
PLAIN = "from transformers.cli.transformers import main; main()"


@dataclass(frozen=True)
class Server:
    """A server at a port of the loopback interface that serves a model under a name."""

    process: subprocess.Popen[bytes]
    port: int
    model: str
    seconds_to_start: float

    def connection(self, timeout: float = 600) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def post(self, content: bytes, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
        """Send a body, and return status and body of the answer."""
        connection = self.connection()
        try:
            connection.request("POST", path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a valid request. Raises RuntimeError for another status than 200."""
        status, content = self.post(json.dumps({"model": self.model, **body}).encode())
        if status != 200:
            raise RuntimeError(f"status {status}: {content.decode()[:500]}")
        document: dict[str, Any] = json.loads(content)
        return document

    def hang_up(self, body: Mapping[str, Any]) -> None:
        """Request a stream, read until its first text arrives, and disconnect."""
        connection = self.connection()
        content = json.dumps({"model": self.model, **body, "stream": True})
        connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        while b'"content"' not in answer.readline():
            pass
        assert connection.sock is not None
        # Reset the connection, as the system does for a process that was killed.
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        connection.sock.close()
        connection.close()

    def counter(self, name: str) -> float:
        """Return one of the server's metrics."""
        connection = self.connection()
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def settle(self) -> None:
        """Wait until no request is in progress."""
        while self.counter("qkedit_requests_under_way"):
            time.sleep(0.02)

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads, which other work on the machine hardly affects."""
        # The CPU clock of another process, as clock_getcpuclockid of the C library returns it on Linux.
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def memory(self, kind: str = "VmRSS") -> int:
        """Return its resident memory in bytes, or with VmHWM its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{kind}:")))


@contextmanager
def serving(
    program: str, model: str, arguments: Sequence[str], log: Path, *, threads: int, port: int | None = None
) -> Iterator[Server]:
    """Run `serve ARGUMENTS` of a program, wait until it is healthy, and stop it at the end of the block.

    Args:
        program: Python code that runs the command line.
        model: the name of the model in requests.
        arguments: the arguments after `serve`.
        log: the file for its output.
        threads: the number of threads of PyTorch.
        port: the port; None for a free one.
    """
    if port is None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", program, "serve", *arguments, "--port", str(port)]
    started = time.perf_counter()
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            while not _healthy(port):
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield Server(process, port, model, time.perf_counter() - started)
        finally:
            process.send_signal(signal.SIGKILL)


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def png(image: Image.Image) -> bytes:
    """Return an image as PNG."""
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def question(prompt: str, *files: bytes) -> list[dict[str, Any]]:
    """Return the messages of one turn: images, then the prompt."""
    urls = ["data:image/png;base64," + base64.b64encode(file).decode() for file in files]
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": prompt}]}]
