"""A loopback hub with writable repositories, with the HTTP interface that `huggingface_hub` uses.

    with serve_writable_hub() as hub:
        base = hub.add("org/base", {"config.json": b"{}", "model.safetensors": weights})
        …
        assert hub.writes() == ["create me/edited", "copy model.safetensors from org/base", "commit me/edited"]

It stores large files by their SHA-256 for each repository, like the real one: a commit that names a file which was
neither uploaded nor copied there is refused. Files of weights are large, by their name. The hub does not have the Xet
protocol, so a test sets `huggingface_hub.constants.HF_HUB_DISABLE_XET`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fake_hub import serving


def is_large(path: str) -> bool:
    """Return whether the hub stores a file outside the git repository, by `.gitattributes`."""
    return path.endswith(".safetensors")


@dataclass
class Branch:
    """The commits of a branch, each with all its files."""

    commits: list[tuple[str, dict[str, bytes]]]

    @property
    def head(self) -> str:
        return self.commits[-1][0]


@dataclass
class Repository:
    """A model repository."""

    private: bool
    branches: dict[str, Branch]
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a branch or commit. Raises KeyError."""
        if revision in self.branches:
            return self.branches[revision].commits[-1][1]
        return dict(commit for branch in self.branches.values() for commit in branch.commits)[revision]

    def head(self, revision: str = "main") -> str:
        return self.branches[revision].head if revision in self.branches else revision


@dataclass
class Faults:
    """The faults to simulate, by kind of write; see `writes`."""

    refused: dict[str, tuple[int, str]] = field(default_factory=dict)  # status and message
    uncopied: str = ""  # the error of each copy in the reply; empty for no error
    before_commit: Any = None  # called once before a commit is checked


@dataclass
class WritableHub:
    """A running hub and its writes."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    log: list[tuple[str, str, int]] = field(default_factory=list)  # method, path, bytes received
    written: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False, commit: str = "") -> str:
        """Create a repository with one commit on `main`, and return the commit."""
        commit = commit or hashlib.sha1(name.encode()).hexdigest()
        self.repositories[name] = Repository(private, {"main": Branch([(commit, dict(files))])})
        large = self.repositories[name].large
        large |= {sha256(content): content for path, content in files.items() if is_large(path)}
        return commit

    def writes(self) -> list[str]:
        """Return the writes since the last call, in order."""
        written, self.written = self.written, []
        return written

    def uploaded(self) -> int:
        """Return the number of received bytes of large files."""
        return sum(size for method, _, size in self.log if method == "PUT")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serve_writable_hub() -> Iterator[WritableHub]:
    """Serve a hub without repositories."""
    hub = WritableHub()
    with serving(type("Handler", (_Handler,), {"hub": hub})) as hub.endpoint:
        yield hub


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: WritableHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        self._answer_to(self._get)

    def do_POST(self) -> None:
        self._answer_to(self._post)

    def do_PUT(self) -> None:
        self._answer_to(self._put)

    def _answer_to(self, handle: Any) -> None:
        split = urlsplit(self.path)
        self.parts = [unquote(part) for part in split.path.strip("/").split("/")]
        self.body = self._read_body()
        if self.parts[1:] == ["agent-harnesses"]:  # the library requests it once per process
            self._send(404, b"", {})
            return
        self.hub.log.append((self.command, split.path, len(self.body)))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        # The signed URL of an upload belongs to another server: it must not receive the token.
        assert self.command != "PUT" or not token
        self.hub.tokens |= set() if self.command == "PUT" else {token}
        try:
            answer = handle()
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._send(refused.status, json.dumps({"error": refused.message}).encode(), headers)
        else:
            status, content, headers = answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode(), {})
            self._send(status, content, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _write(self, what: str) -> None:
        """Record a write, or refuse it."""
        if what in self.hub.faults.refused:
            status, message = self.hub.faults.refused[what]
            raise _Refused(status, message=message)
        self.hub.written.append(what)

    def _repository(self, name: str) -> Repository:
        if name not in self.hub.repositories:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        return self.hub.repositories[name]

    def _files(self, name: str, revision: str) -> dict[str, bytes]:
        try:
            return self._repository(name).files(revision)
        except KeyError:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}") from None

    def _get(self) -> Any:
        match self.parts:
            case ["api", "models", owner, model, *rest]:
                name = f"{owner}/{model}"
                revision = rest[1] if rest else "main"
                files = self._files(name, revision)
                if rest[:1] == ["tree"]:
                    return [_entry(path, content) for path, content in files.items()]
                repository = self._repository(name)
                siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
                return {
                    "id": name,
                    "sha": repository.head(revision),
                    "private": repository.private,
                    "siblings": siblings,
                }
            case [owner, model, "resolve", revision, *path]:
                content = self._files(f"{owner}/{model}", revision)["/".join(path)]
                start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
                return (
                    206,
                    content[int(start) : int(end) + 1],
                    {"Content-Range": f"bytes {start}-{end}/{len(content)}"},
                )
        raise _Refused(404)

    def _post(self) -> Any:
        match self.parts:
            case ["api", "validate-yaml"]:
                return {"warnings": [], "errors": []}
            case ["api", "repos", "create"]:
                return self._create(json.loads(self.body))
            case ["api", "models", owner, model, "branch", branch]:
                name = f"{owner}/{model}"
                self._write(f"branch {branch} of {name}")
                repository = self._repository(name)
                start = json.loads(self.body).get("startingPoint") or "main"
                repository.branches[branch] = Branch([(repository.head(start), self._files(name, start))])
                return {}
            case ["api", "models", owner, model, "preupload", revision]:
                standing = self._files(f"{owner}/{model}", revision)
                return {"files": [_mode(file, standing) for file in json.loads(self.body)["files"]]}
            case ["api", "models", owner, model, "paths-info", revision]:
                files = self._files(f"{owner}/{model}", revision)
                wanted = parse_qs(self.body.decode()).get("paths", [])
                return [_entry(path, files[path]) for path in wanted if path in files]
            case ["api", "models", owner, model, "lfs-files", "duplicate"]:
                return self._duplicate(f"{owner}/{model}", json.loads(self.body))
            case ["api", "models", owner, model, "commit", revision]:
                lines = [json.loads(line) for line in self.body.splitlines()]
                return self._commit(f"{owner}/{model}", revision, lines)
            case [owner, git, "info", "lfs", "objects", "batch"]:
                return self._batch(f"{owner}/{git.removesuffix('.git')}", json.loads(self.body))
        raise _Refused(404)

    def _create(self, request: dict[str, Any]) -> Any:
        name = f"{request['organization']}/{request['name']}"
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self._write(f"create {name}" + (", private" if private else ""))
        if name in self.hub.repositories:
            raise _Refused(409, message="You already created this model repo")
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        return {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name}

    def _batch(self, name: str, request: dict[str, Any]) -> Any:
        large = self._repository(name).large
        objects: list[dict[str, Any]] = []
        for wanted in request["objects"]:
            href = f"{self.hub.endpoint}/large/{name}/{wanted['oid']}?X-Amz-Signature=secret-signature"
            actions = {} if wanted["oid"] in large else {"actions": {"upload": {"href": href, "header": {}}}}
            objects.append(wanted | actions)
        return {"transfer": "basic", "objects": objects}

    def _put(self) -> Any:
        _, owner, model, oid = self.parts
        self._write(f"upload {len(self.body)} bytes to {owner}/{model}")
        if sha256(self.body) != oid:
            raise _Refused(400, message="the content is not what its name says")
        self._repository(f"{owner}/{model}").large[oid] = self.body
        return {}

    def _duplicate(self, source: str, request: dict[str, Any]) -> Any:
        target = self._repository(request["target"]["name"])
        if self.hub.faults.uncopied:
            return {
                "failed": [{"sha256": file["sha256"], "error": self.hub.faults.uncopied} for file in request["files"]]
            }
        for file in request["files"]:
            self._write(f"copy {file['filename']} from {source}")
            content = self._repository(source).large[file["sha256"]]
            assert file["xetHash"] == xet_hash(content)
            target.large[file["sha256"]] = content
        return {"success": request["files"], "failed": []}

    def _commit(self, name: str, revision: str, lines: list[dict[str, Any]]) -> Any:
        if self.hub.faults.before_commit is not None:
            before, self.hub.faults.before_commit = self.hub.faults.before_commit, None
            before()
        repository = self._repository(name)
        self._write(f"commit {name}")
        files = dict(self._files(name, revision))
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.head(revision)):
            raise _Refused(412, message="A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in repository.large:
                    raise _Refused(400, message=f"{value['path']} was not uploaded")
                files[value["path"]] = repository.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise AssertionError(line["key"])
        commit = hashlib.sha1(self.body).hexdigest()
        repository.branches[revision].commits.append((commit, files))
        return {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit}


def xet_hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    if not is_large(path):
        return entry | {"oid": _git_sha1(content)}
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()
    )
    lfs = {"oid": sha256(content), "size": len(content), "pointerSize": len(pointer)}
    return entry | {"oid": _git_sha1(pointer), "lfs": lfs, "xetHash": xet_hash(content)}


def _mode(file: dict[str, Any], standing: dict[str, bytes]) -> dict[str, Any]:
    path = file["path"]
    content = standing.get(path)
    oid = None if content is None else sha256(content) if is_large(path) else _git_sha1(content)
    return {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False, "oid": oid}
