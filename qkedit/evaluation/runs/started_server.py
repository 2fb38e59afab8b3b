"""Start a server that speaks OpenAI's protocol on this machine for one run, ask it as any endpoint, and stop it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkedit.errors import QkeditError
from qkedit.evaluation.runs import server_guard
from qkedit.evaluation.runs.endpoint import Endpoint
from qkedit.evaluation.runs.endpoint_session import EndpointSession, Unreachable

_HOST = "127.0.0.1"
_BETWEEN = 0.2  # seconds between two questions whether it is ready
# The first failure in a log: `ValueError: …`, or `error: …` about a command line.
_FAILURE = re.compile(r"(?:\b\w*(?:Error|Exception)|\berror): (.+)")


@dataclass(frozen=True)
class StartedServer:
    """A model behind a server that is started when the first question is asked, and stopped after the last.

    Attributes:
        name: the user's name for the model.
        engine: the name of the server's program, for messages.
        served_name: the name of the model in requests.
        command: returns the command that starts the server at a port of this machine.
        environment: the environment of the server.
        facts: everything about the model and the server that affects answers.
        concurrency: the largest number of requests in progress at a time; None to measure which is fastest.
        tell: called with a sentence before the server is started.
    """

    name: str
    engine: str
    served_name: str
    command: Callable[[int], Sequence[str]] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    facts: Mapping[str, Any] = field(repr=False)
    concurrency: int | None = None
    tell: Callable[[str], object] = field(default=lambda sentence: None, repr=False)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Backend`."""
        return {"concurrency": self.concurrency or "measured"}

    def identity(self) -> dict[str, Any]:
        """See `Backend`."""
        return dict(self.facts)

    @contextmanager
    def session(self) -> Iterator[EndpointSession]:
        """See `Backend`. Raises QkeditError if the server ends before it is ready, or while it answers."""
        port = _free_port()
        with self._running(port) as (server, log):
            self._wait(server, port, log)
            endpoint = Endpoint(f"http://{_HOST}:{port}/v1", self.served_name, self.concurrency)
            try:
                with endpoint.session() as session:
                    yield session
            except Unreachable as error:
                raise QkeditError(
                    f"{self.engine} does not answer any more",
                    where=self.name,
                    remedy=f"see its log, {log}, and run the same command to go on",
                ) from error

    @contextmanager
    def _running(self, port: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """Start the server, and stop it at the end. Its log is removed unless there was an error."""
        with tempfile.NamedTemporaryFile(prefix=f"qkedit-{self.engine}-", suffix=".log", delete=False) as log:
            place = Path(log.name)
            self.tell(f"starting {self.engine} (its log: {place})")
            # A session of its own: Ctrl-C on a terminal goes to this process alone, which stops the server.
            server = subprocess.Popen(
                [sys.executable, server_guard.__file__, *self.command(port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,
            )
        is_kept = False
        try:
            yield server, place
        except Exception:
            is_kept = True
            raise
        finally:
            assert server.stdin is not None
            server.stdin.close()
            server.wait()
            if not is_kept:
                place.unlink(missing_ok=True)

    def _wait(self, server: subprocess.Popen[bytes], port: int, log: Path) -> None:
        """Wait until the server is ready, without a time limit: a large model takes long, and a failed server ends."""
        while not _is_ready(port):
            if server.poll() is not None:
                failure = _FAILURE.search(log.read_text("utf-8", errors="replace"))
                reason = f" ({failure[1].strip()[:300].rstrip('.')})" if failure else ""
                raise QkeditError(
                    f"{self.engine} ended before it was ready{reason}", where=self.name, remedy=f"see its log, {log}"
                )
            time.sleep(_BETWEEN)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((_HOST, 0))
        port: int = one.getsockname()[1]
        return port


def _is_ready(port: int) -> bool:
    """Return whether the server at a port of this machine is ready."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{_HOST}:{port}/health", timeout=5):
            return True
    except OSError:  # refused, no answer in time, or a status that says it is not ready
        return False
