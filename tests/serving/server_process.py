"""Run `qkedit serve` in a separate process, or its application in a thread, and send requests to it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from openai import OpenAI
from PIL import Image

from qkedit.serving.http.middleware import RequestGuard

COMMAND = [sys.executable, "-c", "from qkedit.cli.app import run; run()", "serve"]


@dataclass(frozen=True)
class Server:
    """A server that is ready, and its output so far."""

    process: subprocess.Popen[str]
    said: dict[str, Any]
    log: Path

    @property
    def url(self) -> str:
        return self.said["url"]

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def counters(self, key: str = "none") -> dict[str, float]:
        """Return every counter by name and labels."""
        request = urllib.request.Request(
            self.url.removesuffix("/v1") + "/metrics", headers={"Authorization": f"Bearer {key}"}
        )
        with urllib.request.urlopen(request) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    def settled(self, key: str = "none") -> dict[str, float]:
        """Return the counters when no request is in progress."""
        for _ in range(400):
            if (counted := self.counters(key))["qkedit_requests_under_way"] == 0:
                return counted
            time.sleep(0.05)
        raise AssertionError("a request is still in progress")


@contextmanager
def serving(directory: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start `qkedit serve ARGUMENTS` at a free port, with its log in `directory`, and wait until it is ready."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QKEDIT_")}
    with (
        (directory / "log").open("w") as log,
        subprocess.Popen(
            [*COMMAND, *arguments, "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            document = ""
            while not document.endswith("\n}\n"):
                line = process.stdout.readline()
                assert line, (directory / "log").read_text()
                document += line
            said = json.loads(document)
            assert said["status"] == "done", said
            yield Server(process, said, directory / "log")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)


@contextmanager
def serving_in_a_thread(application: RequestGuard) -> Iterator[str]:
    """Serve an application from a thread of this process, and yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def data_url(image: Image.Image, kind: str = "png") -> str:
    """Return the data URL of an image as PNG, which is lossless."""
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def question(text: str, *images: Image.Image) -> list[dict[str, Any]]:
    """Return one turn with images before its text."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def ask(client: OpenAI, messages: list[dict[str, Any]], **settings: Any) -> Any:
    """Return the answer of the served model "tiny"."""
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 12, **settings})  # type: ignore[call-overload]


def streamed(client: OpenAI, messages: list[dict[str, Any]], **settings: Any) -> tuple[list[str], Any]:
    """Return the pieces of a streamed answer, and its last chunk."""
    chunks = list(ask(client, messages, stream=True, **settings))
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content], chunks[-1]


def plugins(*names: str) -> dict[str, Any]:
    """Return the fields of a request that select these plug-ins."""
    return {"qkedit": {"plugins": list(names)}}
