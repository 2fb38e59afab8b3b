"""Test fetching the files that loading a model needs, from a loopback hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qkedit.checkpoint.hub.snapshot import model_directory
from qkedit.errors import CheckpointError
from tests.fake_hub import serve_hub

FETCH = (
    "import sys; from qkedit.checkpoint.hub.snapshot import model_directory; "
    "print(model_directory(sys.argv[1], with_code=len(sys.argv) > 2))"
)


def test_a_local_directory_is_returned_unchanged(tmp_path: Path) -> None:
    assert model_directory(str(tmp_path)) == tmp_path


def test_pickles_and_code_are_not_fetched_by_default(tmp_path: Path) -> None:
    """Run in a new process, since the hub's library reads the hub's address at import."""
    published = tmp_path / "published"
    (published / "original").mkdir(parents=True)
    wanted = ("config.json", "model.safetensors", "chat_template.jinja", "vocab.txt")
    others = ("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "original/params.json")
    for name in (*wanted, *others):
        (published / name).write_text(name)
    with serve_hub(published, "org/name") as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        command = [sys.executable, "-c", FETCH, "org/name"]
        fetched = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        directory = Path(fetched.stdout.strip())
        assert sorted(path.name for path in directory.rglob("*")) == sorted(wanted)
        assert all((directory / name).read_text() == name for name in wanted)
        trusted = subprocess.run([*command, "code"], env=environment, capture_output=True, text=True, check=True)
        assert trusted.stdout == fetched.stdout
        assert (directory / "modeling.py").read_text() == "modeling.py"
    # The hub is stopped; the cache remains.
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert Path(again.stdout.strip()) == directory


def test_an_invalid_hub_id_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a valid hub id"):
        model_directory("no/such/directory")
