"""Test when `scripts/test.sh` runs the comparison on vLLM, in a repository whose scripts do nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.scripts.loading import SCRIPTS

NOTHING = "#!/bin/sh\n"
PLUGIN, OTHER = "qkedit/plugins/core/grid.py", "qkedit/errors.py"


def git(directory: Path, *words: str) -> None:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *settings, *words], cwd=directory, check=True, capture_output=True)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with `main` and a branch that equals it."""
    for name in ("python", "ruff", "mypy"):
        write(tmp_path / ".venv" / "bin" / name, NOTHING)
    for name in (PLUGIN, OTHER):
        write(tmp_path / name, "")
    write(tmp_path / "scripts" / "test_vllm.sh", NOTHING + "touch .venv/compared\n")
    shutil.copy(SCRIPTS / "test.sh", tmp_path / "scripts")
    write(tmp_path / ".gitignore", ".venv\n")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "switch", "-qc", "branch")
    return tmp_path


def compared(repository: Path, **settings: str) -> bool:
    """Run `scripts/test.sh`, and return whether it compared on vLLM."""
    environment = {name: value for name, value in os.environ.items() if name != "TEST_VLLM"} | settings
    subprocess.run(["sh", "scripts/test.sh"], cwd=repository, env=environment, check=True, capture_output=True)
    return (repository / ".venv" / "compared").exists()


def test_vllm_is_not_compared_by_default(repository: Path) -> None:
    assert not compared(repository)
    assert compared(repository, TEST_VLLM="1")


def test_vllm_is_not_compared_if_its_code_is_unchanged(repository: Path) -> None:
    write(repository / OTHER, "changed")
    write(repository / "qkedit" / "new.py", "")
    assert not compared(repository, TEST_VLLM="main")


@pytest.mark.parametrize("changed", [PLUGIN, "qkedit/plugins/new.py", "scripts/test_vllm.sh"])
@pytest.mark.parametrize("is_committed", [False, True])
def test_vllm_is_compared_if_its_code_has_changed(repository: Path, changed: str, is_committed: bool) -> None:
    write(repository / changed, NOTHING + "# changed\ntouch .venv/compared\n")
    if is_committed:
        git(repository, "add", ".")
        git(repository, "commit", "-qm", "second")
    assert compared(repository, TEST_VLLM="main")


def test_an_unknown_revision_is_an_error(repository: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as found:
        compared(repository, TEST_VLLM="elsewhere")
    assert b"elsewhere" in found.value.stderr
    assert not (repository / ".venv" / "compared").exists()


def test_vllm_is_not_compared_after_failed_tests(repository: Path) -> None:
    write(repository / ".venv" / "bin" / "mypy", NOTHING + "exit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        compared(repository, TEST_VLLM="1")
    assert not (repository / ".venv" / "compared").exists()
