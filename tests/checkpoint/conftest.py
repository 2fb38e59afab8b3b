"""Fixtures: targets with and without an earlier output, on file systems with and without atomic exchange."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkedit.checkpoint.io import rename
from tests.checkpoint.outputs import write_output


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "edited"


@pytest.fixture
def old(target: Path) -> Path:
    """Return a target that holds an earlier output, generation 1."""
    target.mkdir()
    write_output(target, 1)
    return target


@pytest.fixture(params=["atomic", "plain"])
def exchange_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(rename, "_renameat2", lambda *_: False)
    return request.param
