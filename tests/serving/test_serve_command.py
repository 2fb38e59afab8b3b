"""Test `qkedit serve` in this process up to the first request."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from qkedit.demo import SMALL_DEMO
from qkedit.serving import openai_server, serving_packages
from qkedit.serving.http.middleware import LOCAL_NAMES
from qkedit.serving.limits import Limits
from tests.cli.command import qkedit
from tests.serving.served_models import llava


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava(tmp_path_factory.mktemp("models") / "edited@1")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the guard and its socket; the server starts and stops at once."""
    seen: list[Any] = []

    def run_server(application: Any, listening: socket.socket, *, ready: Any, log: bool, limits: Limits) -> None:
        with pytest.raises(ConnectionRefusedError):  # the model is loaded, and only now clients can connect
            socket.create_connection(("127.0.0.1", listening.getsockname()[1]))
        seen.append((application, listening.getsockname(), log))
        ready()

    monkeypatch.setattr(openai_server, "run_server", run_server)
    monkeypatch.delenv("QKEDIT_API_KEY", raising=False)
    return seen


def test_the_command_prints_model_address_and_plugins(model: Path, served: list[Any]) -> None:
    (model / "qkedit-plugins.json").write_text(
        '{"schema": 1, "plugins": [{"name": "scr", "options": {"layers": "0"}}]}'
    )
    result = qkedit("serve", model, "--port", "0", "--json")
    assert result.code == 0
    host, port = served[0][1]
    assert (host, result.document["url"]) == ("127.0.0.1", f"http://127.0.0.1:{port}/v1")
    assert result.document["model"] == "edited@1"
    assert result.document["plugins"] == [{"name": "scr", "options": {"layers": "0"}}]
    (model / "qkedit-plugins.json").unlink()
    result = qkedit("serve", model, "--port", "0", "--served-name", "mine", "--host", "0.0.0.0", "--plugin", "none")
    assert f"serving mine at http://0.0.0.0:{served[1][1][1]}/v1, plug-ins: none" in result.stdout
    local, everywhere = (application._names for application, _, _ in served)
    assert (local, everywhere) == (LOCAL_NAMES, None)
    assert "everybody who reaches 0.0.0.0 can use the model; set QKEDIT_API_KEY" in result.stderr


def test_plugins_may_come_from_a_file(model: Path, served: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "plugins.json"
    options = {"name": "scr", "options": {"layers": "0-1", "sources": 4}}
    file.write_text(json.dumps({"schema": 1, "plugins": [options]}))
    command = ["serve", model, "--port", "0", "--json", "--plugin-config", file]
    assert qkedit(*command).document["plugins"] == [options]
    merged = {"name": "scr", "options": {"layers": "1", "sources": 4}}
    assert qkedit(*command, "--plugin", "scr:layers=1").document["plugins"] == [merged]
    assert qkedit(*command, "--plugin", "none").document["plugins"] == []
    assert "dscr is not in the file" in qkedit(*command, "--plugin", "dscr").document["error"]["what"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--api-key", " "], 2, "--api-key: the key is empty"),
        (["--allow-image-hosts", "https://a.org/x"], 2, "is not a host"),
        (["--allow-image-hosts", "*.org"], 2, "is not a host"),
        (["--host", "256.0.0.1"], 1, "cannot listen there"),
        (["--plugin", "nothing"], 2, "there is no plug-in 'nothing'"),
        (["--plugin", "scr:layers=0-9"], 2, "goes beyond the model"),
        (["--plugin", "dscr:depth=/nowhere/depth.npy"], 2, "cannot be read as a depth map"),
        # It is loaded at its first use, before the port opens.
        (["--plugin", "dscr:depth=/nowhere"], 1, "/nowhere"),
        (["--max-images", "0"], 2, "--max-images"),
    ],
)
def test_invalid_options_prevent_the_start(
    model: Path, served: list[Any], arguments: list[str], code: int, words: str
) -> None:
    result = qkedit("serve", model, "--port", "0", *arguments)
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert (result.code, result.stdout, served) == (code, "", [])


def test_a_used_port_is_refused_before_the_model_is_loaded(served: list[Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = qkedit("serve", "/no/model/at/all", "--port", str(port))
    assert result.sentence() == (
        f"127.0.0.1:{port}: the server cannot listen there (Address already in use); choose another --host or --port."
    )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_packages, "PACKAGES", ("openai", "no_such_package"))
    assert qkedit("serve", SMALL_DEMO).sentence() == (
        "qkedit serve: the package no_such_package is not installed; install it with `pip install 'qkedit[serve]'`."
    )
