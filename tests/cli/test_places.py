"""Test deleted directories and names that are not UTF-8: a sentence or a result, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from qkedit.cli.command_table import COMMANDS
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from tests.cli.command import qkedit

ARGUMENTS = {
    "apply": ("./delta", "--out", "out"),
    "plugins add": ("scr", "--model", SMALL_DEMO),
    "compare": ("a", "b"),
    "diff": (SMALL_DEMO, SMALL_DEMO),
    "export": ("edited", "--out", "out"),
    "interpolate": ("edited", "--strength", "0.5", "--out", "out"),
    "merge": ("edited", "other", "--out", "out"),
    "gate": ("a", "--require", "pope.f1>=0"),
    "score": ("pope", "--answers", "a", "--data", "d"),
    "push": ("edited", "org/name"),
    "revert": ("edited",),
    "verify": ("edited",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_deleted_working_directory_is_reported(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = qkedit(*command.split(), *ARGUMENTS.get(command, ()))
    assert (result.code, result.sentence()) == (
        2,
        "the working directory does not exist any more; change to one that does (cd), and run again.",
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory whose name is in Latin-1."""
    place = tmp_path / os.fsdecode(b"mod\xe8le")
    try:
        place.mkdir()
    except OSError:
        pytest.skip("the file system accepts only names in UTF-8")
    shutil.copytree(demo_checkpoint(SMALL_DEMO), place / SMALL_DEMO)
    return place


def test_paths_that_are_not_utf_8_are_accepted(place: Path) -> None:
    model, out = place / SMALL_DEMO, place / "out"
    steered = qkedit("steer", model, "--layers", "2", "--out", out, "--no-fsync", "--json")
    assert steered.code == 0
    assert steered.document["out"] == str(out)
    json.loads((out / "qkedit.json").read_bytes().decode())
    verified = qkedit("verify", out, "--base", model)
    assert (verified.code, verified.stderr) == (0, "")
    shown = qkedit("inspect", model, "--layers", "2", "--csv", place / "a.csv")
    assert (shown.code, shown.stderr) == (0, "")
    assert r"mod\udce8le" in shown.stdout


def test_a_model_at_a_path_that_is_not_utf_8_is_refused_with_the_reason(place: Path) -> None:
    image = place / "x.png"
    Image.new("RGB", (64, 64)).save(image)
    result = qkedit("generate", place / SMALL_DEMO, "--prompt", "x", "--image", image)
    assert result.code == 2
    assert "holds bytes that are not UTF-8" in result.sentence()


def test_a_prompt_that_is_not_utf_8_is_refused() -> None:
    result = qkedit("generate", SMALL_DEMO, "--prompt", "wh\udce8t")
    assert result.code == 2
    assert "it holds bytes that are not UTF-8" in result.sentence()
