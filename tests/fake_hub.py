"""A loopback hub that serves one directory as a model repository, logs requests, and fails on demand.

    with serve_hub(directory, "org/name") as hub:
        files = HubFiles.open("org/name", endpoint=hub.endpoint, cache_dir=tmp_path)
        hub.faults.drop_after = 1000
        assert hub.fetched("model.safetensors") == [(0, 8)]

A subprocess uses it with `env=hub.environment(home)`. `huggingface_hub` reads its variables at import, so a test in
this process passes `endpoint` and `cache_dir` instead, see `tests/checkpoint/hub/test_files.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Faults:
    """The faults to simulate, which may change while the hub runs."""

    gated: bool = False  # files are refused with 403, as for a user who did not accept the terms
    status: int | None = None  # every request is answered with this error
    failing_requests: int = 10**9  # the number of requests that `status` applies to
    drop_after: int | None = None  # the connection breaks after so many bytes of a file
    drops: int = 10**9  # the number of bodies that `drop_after` applies to
    ignore_range: bool = False  # replies always contain the whole file
    wrong_range: bool = False  # replies have another range than the requested one
    redirect: str | None = None  # endpoint of a second server to which files are redirected, as to a CDN
    extra_siblings: list[dict[str, object]] = field(default_factory=list)  # files that are listed but do not exist


@dataclass(frozen=True)
class Request:
    """One request and its reply."""

    method: str
    path: str
    range: tuple[int, int] | None  # first byte and the one after the last
    token: str | None
    status: int
    sent: int  # bytes of the body


@dataclass
class FakeHub:
    """A running hub; `requests` grows with each request."""

    directory: Path
    repo_id: str
    commit: str
    endpoint: str = ""
    faults: Faults = field(default_factory=Faults)
    requests: list[Request] = field(default_factory=list)

    def fetched(self, file: str) -> list[tuple[int, int] | None]:
        """Return the requested and sent ranges of one file, in order; None is the whole file."""
        return [
            request.range
            for request in self.requests
            if request.method == "GET" and request.sent and unquote(request.path).endswith(f"/{file}")
        ]

    def bytes_sent(self) -> int:
        """Return the number of bytes in all bodies."""
        return sum(request.sent for request in self.requests if "/resolve/" in request.path)

    def environment(self, home: Path, **variables: str) -> dict[str, str]:
        """Return the environment of a subprocess that uses this hub, with cache and token in `home`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))}
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **variables,
        }


@contextmanager
def serve_hub(directory: Path, repo_id: str = "org/model", commit: str = COMMIT) -> Iterator[FakeHub]:
    """Serve the present files of a directory as one commit on branch `main`."""
    hub = FakeHub(directory, repo_id, commit)
    with serving(type("Handler", (_Handler,), {"hub": hub})) as hub.endpoint:
        yield hub


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve requests in a thread, and yield the address."""
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect early."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        faults = self.hub.faults
        repo = re.escape(self.hub.repo_id)
        if faults.status is not None and faults.failing_requests > 0:
            faults.failing_requests -= 1
            self._refuse(faults.status)
        elif match := re.fullmatch(rf"/api/models/{repo}(?:/revision/(?P<revision>.+))?", path):
            if self._is_known(match["revision"]):
                self._answer_json(self._model_info())
        elif match := re.fullmatch(rf"/api/models/{repo}/tree/(?P<revision>[^/]+)", path):
            if self._is_known(match["revision"]):
                self._answer_json(self._tree())
        elif match := re.fullmatch(rf"/{repo}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path):
            if self._is_known(match["revision"]):
                self._answer_file(match["file"])
        else:
            # The real hub answers 401 here without a login, so that private and missing models look the same.
            self._refuse(401, "RepoNotFound")

    def _is_known(self, revision: str | None) -> bool:
        known = revision in (None, "main", self.hub.commit)
        if not known:
            self._refuse(404, "RevisionNotFound")
        return known

    def _files(self) -> dict[str, Path]:
        root = self.hub.directory
        return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}

    def _model_info(self) -> dict[str, object]:
        siblings = [{"rfilename": name, "size": path.stat().st_size} for name, path in self._files().items()]
        return {
            "id": self.hub.repo_id,
            "sha": self.hub.commit,
            "siblings": siblings + self.hub.faults.extra_siblings,
        }

    def _tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
            for name, path in self._files().items()
        ]

    def _answer_file(self, name: str) -> None:
        faults = self.hub.faults
        path = self._files().get(name)
        if faults.gated:
            self._refuse(403, "GatedRepo")
        elif path is None:
            self._refuse(404, "EntryNotFound")
        elif faults.redirect is not None:
            location = f"{faults.redirect}{self.path}"
            size = str(path.stat().st_size)
            self._answer(302, b"", {"Location": location, "X-Linked-Size": size, "X-Linked-Etag": _etag(path)})
        else:
            self._answer_content(path)

    def _answer_content(self, path: Path) -> None:
        faults = self.hub.faults
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{_etag(path)}"'}
        size = path.stat().st_size
        status, (start, end) = 200, (0, size)
        wanted = self._wanted_range(size)
        if wanted is not None and not faults.ignore_range:
            start, end = (wanted[0] + 1, wanted[1] + 1) if faults.wrong_range else wanted
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{size}"
        with path.open("rb") as file:
            file.seek(start)
            self._answer(status, file.read(end - start), headers)

    def _wanted_range(self, size: int) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        return (int(match[1]), min(int(match[2]) + 1, size) if match[2] else size) if match else None

    def _answer_json(self, answer: object) -> None:
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str = "") -> None:
        self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"refused with {status}"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        faults = self.hub.faults
        dropped = status in (200, 206) and "ETag" in headers and faults.drop_after is not None and faults.drops > 0
        if self.command == "HEAD":
            sent = b""
        elif dropped:
            faults.drops -= 1
            sent = body[: faults.drop_after]
        else:
            sent = body
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        # Logged before it is sent, so that every reply that the client receives is in the log.
        self.hub.requests.append(
            Request(self.command, urlsplit(self.path).path, self._wanted_range(1 << 62), token, status, len(sent))
        )
        self.send_response(status)
        for name, value in {"X-Repo-Commit": self.hub.commit, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)
        if dropped and self.command != "HEAD":
            self.close_connection = True


def _etag(path: Path) -> str:
    """Return an identifier of a file's content: not its hash, which would be computed for every range."""
    status = path.stat()
    return hashlib.sha256(f"{path}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()
