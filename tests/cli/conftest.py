"""Fixtures: a checkpoint to work on, and a process that runs commands quickly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import Runs, runs
from tests.steering.checkpoints import unchanged


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's own settings from the environment."""
    for name in list(os.environ):
        if name.startswith("QKEDIT_") or name in (
            "NO_COLOR",
            "FORCE_COLOR",
            "COLUMNS",
            "HF_HUB_DISABLE_PROGRESS_BARS",
        ):
            monkeypatch.delenv(name)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """Return a hand-written checkpoint that a test must not change."""
    with unchanged(tmp_path / "base") as directory:
        yield directory


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Return a runner: `children("steer", …)` runs the command in a new process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QKEDIT_")}
    with runs(tmp_path_factory.mktemp("runs"), kept) as started:
        yield started
