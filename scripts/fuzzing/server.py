"""Run a server of the demo in its own process, with raw connections to it."""

from __future__ import annotations

import atexit
import functools
import re
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from fuzzing.judging import LONGEST_SENTENCE, is_sentence
from fuzzing.target import Finding, Outcome
from qkedit.demo import SMALL_DEMO
from tests.serving.server_process import Server, serving

# The maximum growth of the server over all requests, in megabytes.
GROWTH = 600
# The seconds after which a server without an answer is taken to wait for more bytes.
SILENCE = 0.3
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@functools.cache
def demo_server() -> DemoServer:
    """Return the server of this process, which all targets share; it is started once and stops with the process."""
    server = DemoServer()
    atexit.register(server.close)
    return server


class DemoServer:
    """`qkedit serve demo` on a free port of the loopback."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="qkedit-fuzz-server-")))
        self._server: Server = self._stack.enter_context(serving(directory, SMALL_DEMO, "--max-pixels", "2000000"))
        self._address = urlsplit(self._server.url)
        self._read = 0
        self._peak = self._memory()

    def close(self) -> None:
        """Stop it."""
        self._server.process.kill()
        self._stack.close()

    def post(self, body: bytes) -> bytes:
        """Send a chat completion request, and return the whole answer."""
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._address.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return self.exchange(head.encode() + body)

    def exchange(self, sent: bytes, *, patience: float = 60.0, whole: bool = True) -> bytes:
        """Send bytes, and return the received bytes until the server closes.

        Args:
            sent: the bytes.
            patience: seconds after which silence is a finding.
            whole: whether the bytes are a complete request; otherwise the server may wait for more, and the sending
                side is closed.
        """
        received = b""
        address = (self._address.hostname, self._address.port or 80)
        with socket.create_connection(address, timeout=patience if whole else SILENCE) as connection:
            try:
                connection.sendall(sent)
                while True:
                    try:
                        piece = connection.recv(1 << 16)
                    except TimeoutError:
                        if whole:
                            raise Finding("hang", f"no answer for {patience:g} seconds") from None
                        whole = True
                        connection.settimeout(patience)
                        connection.shutdown(socket.SHUT_WR)
                        continue
                    if not piece:
                        return received
                    received += piece
            except (ConnectionResetError, BrokenPipeError):
                return received

    def judged(self, received: bytes) -> Outcome:
        """Return whether an answer is a success or a client error. Raises Finding for others."""
        self._check_process()
        statuses = [int(status) for status in _STATUS.findall(received)]
        if any(status >= 500 for status in statuses):
            raise Finding("status", ascii(received[:1500].decode("utf-8", "replace")))
        if not statuses:
            return Outcome.REFUSED  # closed without an answer: the request was not HTTP
        return Outcome.ACCEPTED if statuses[0] < 400 else Outcome.REFUSED

    def _check_process(self) -> None:
        if (code := self._server.process.poll()) is not None:
            raise Finding("crash", f"the server ended with {code}")
        with self._server.log.open("rb") as log:
            log.seek(self._read)
            said = log.read().decode("utf-8", "replace")
            self._read = log.tell()
        if "Traceback" in said:
            raise Finding("traceback", ascii(said[-3000:]))
        if (grown := self._memory() - self._peak) > GROWTH:
            self._peak += grown
            raise Finding("memory", f"the server's peak grew by {grown} MB")

    def _memory(self) -> int:
        status = Path(f"/proc/{self._server.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) // 1024 if found else 0


def check_message(message: str) -> None:
    """Raise Finding unless a refusal's message is a sentence of bounded length; JSON escapes its characters."""
    if not is_sentence(message) or len(message) > LONGEST_SENTENCE:
        raise Finding("sentence", ascii(message[:600]))
