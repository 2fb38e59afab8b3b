"""Test that a model is identified by a hash of its content, which shell commands can compute."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.errors import QkeditError
from qkedit.runtime.fingerprint import fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(demo_checkpoint(SMALL_DEMO), tmp_path / "model")


def shell(command: str, directory: Path) -> str:
    run = subprocess.run(
        ["sh", "-c", command],
        cwd=directory,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )
    return run.stdout.decode().split()[0]


def test_shell_commands_compute_the_same_hash(model: Path) -> None:
    settings = "config.json *token*.json generation_config.json model*.json p*.json chat_template.jinja"
    assert fingerprint(model) == {
        "weights_sha256": shell("sha256sum *.safetensors | sha256sum", model),
        "settings_sha256": shell(f"sha256sum $(ls {settings} | sort) | sha256sum", model),
    }


def test_weights_and_settings_change_their_hashes(model: Path) -> None:
    before = fingerprint(model)
    for name in ("README.md", "qkedit-plugins.json", "qkedit.json", "consolidated.safetensors", "notes.md"):
        (model / name).write_text("{}")
    assert fingerprint(model) == before

    shard = sorted(model.glob("model-*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    edited = fingerprint(model)
    assert edited["weights_sha256"] != before["weights_sha256"]
    assert edited["settings_sha256"] == before["settings_sha256"]

    (model / "chat_template.jinja").write_text("{{ messages }}")
    told = fingerprint(model)
    assert told["weights_sha256"] == edited["weights_sha256"]
    assert told["settings_sha256"] != edited["settings_sha256"]


def test_a_directory_without_weights_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(QkeditError, match="no weights as safetensors"):
        fingerprint(tmp_path)
