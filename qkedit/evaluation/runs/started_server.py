"""Start a server that speaks OpenAI's protocol on this machine for one run, ask it as any endpoint, and stop it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkedit.errors import QkeditError
from qkedit.evaluation.runs import server_guard
from qkedit.evaluation.runs.endpoint import Endpoint
from qkedit.evaluation.runs.endpoint_session import EndpointSession, Unreachable
from qkedit.plugins.settings import PluginSettings
from qkedit.runtime.fingerprint import plugin_files_sha256

_HOST = "127.0.0.1"
# Proxies are for other machines.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
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
        plugins: the plug-ins of the server.
        facts: everything else about the model and the server that affects answers.
        concurrency: the largest number of requests in progress at a time; None to measure which is fastest.
        tell: called with a sentence before the server is started.
    """

    name: str
    engine: str
    served_name: str
    command: Callable[[int], Sequence[str]] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    plugins: Sequence[PluginSettings]
    facts: Mapping[str, Any] = field(repr=False)
    concurrency: int | None = None
    tell: Callable[[str], object] = field(default=lambda sentence: None, repr=False)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Backend`."""
        return {"concurrency": self.concurrency or "measured"}

    def identity(self) -> dict[str, Any]:
        """See `Backend`."""
        return {**self.facts, "plugins": [plugin.as_dict() for plugin in self.plugins]}

    def identity_for(self, images: Iterable[Path]) -> dict[str, Any]:
        """See `DependsOnImages`: the content of the files that plug-ins read."""
        return plugin_files_sha256(self.plugins, images)

    @contextmanager
    def session(self) -> Iterator[EndpointSession]:
        """See `Backend`. Raises QkeditError if the server ends before it is ready, or while it answers."""
        port = _free_port()
        with self._running(port) as (server, log):
            self._wait(server, port, log)
            fields = {"add_special_tokens": True} if _lacks_first_token(port, self.served_name) else {}
            endpoint = Endpoint(f"http://{_HOST}:{port}/v1", self.served_name, self.concurrency, fields=fields)
            try:
                with endpoint.lane() as lane:
                    yield _Session([lane], fields, report_port=port if self.plugins else None)
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


@dataclass
class _Session(EndpointSession):
    """The server's session, which asks it at the end what its plug-ins have done.

    Attributes:
        report_port: the port of a server with plug-ins; None without them.
    """

    report_port: int | None = None

    @property
    def warnings(self) -> Sequence[str]:
        """See `Session`."""
        found = list(super().warnings)
        if self.report_port is not None:
            worker = _sent(self.report_port, "qkedit")["workers"][0]
            if count := worker["failed"]:
                found.append(f"{count} prompts ran without plug-ins ({worker['failure']})")
            if count := worker["split"]:
                found.append(f"{count} prompts ran without plug-ins, since vllm split them")
        return found


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((_HOST, 0))
        port: int = one.getsockname()[1]
        return port


def _lacks_first_token(port: int, model: str) -> bool:
    """Return whether prompts lack the beginning-of-text token unless a request asks for it.

    A processor of transformers adds it to a chat template's text that does not have it, as that of LLaVA-1.5; vLLM
    leaves the text as it is.
    """
    turns = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    try:
        plain, added = (
            _sent(port, "tokenize", {"model": model, "messages": turns, "add_special_tokens": adds})["tokens"]
            for adds in (False, True)
        )
    except (OSError, ValueError, LookupError, TypeError):  # a template that takes no text alone
        return False
    return bool(plain) and added[0] != plain[0] and added[1 : len(plain) + 1] == plain


def _sent(port: int, path: str, body: Any = None) -> Any:
    """Return the JSON that a server at a port of this machine answers."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{_HOST}:{port}/{path}", content, {"Content-Type": "application/json"})
    with _DIRECT.open(request, timeout=60) as answer:
        return json.loads(answer.read())


def _is_ready(port: int) -> bool:
    """Return whether the server at a port of this machine is ready."""
    try:
        with _DIRECT.open(f"http://{_HOST}:{port}/health", timeout=5):
            return True
    except OSError:  # refused, no answer in time, or a status that says it is not ready
        return False
