"""Test that plug-ins attached to a base are copied only on request."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import qkedit
from tests.steering.checkpoints import weights, write

PLUGINS = "qkedit-plugins.json"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = write(tmp_path / "base", weights())
    (directory / PLUGINS).write_text('{"schema": 1, "plugins": [{"name": "scr", "options": {}}]}')
    return directory


@pytest.mark.parametrize("keep", [False, True])
def test_attached_plugins_are_copied_only_on_request(base: Path, tmp_path: Path, keep: bool) -> None:
    asked = ["--keep-plugins"] if keep else []
    steer = ["steer", base, "--layers", "all", "--device", "cpu", "--no-fsync", "--json"]
    full, delta, applied = (tmp_path / name for name in ("full", "delta", "applied"))
    steered = qkedit(*steer, "--out", full, *asked)
    assert steered.code == 0, steered.stderr
    assert qkedit(*steer, "--out", delta, "--layout", "delta").code == 0
    made = qkedit("apply", delta, "--base", base, "--out", applied, "--no-fsync", *asked)
    assert made.code == 0, made.stderr
    assert made.stdout.splitlines()[0].split() == ["applied", str(delta), "to", str(base)]
    assert ("--keep-plugins" in steered.document["left_out"].get(PLUGINS, "")) != keep
    for out in (full, applied):
        assert (out / PLUGINS).exists() == keep
        assert qkedit("verify", out, "--base", base).code == 0
    if keep:
        assert (full / PLUGINS).read_bytes() == (base / PLUGINS).read_bytes()
    planned = qkedit(*steer, "--dry-run", *asked).document
    assert (PLUGINS in planned["left_out"]) != keep
