"""Test the smoke test of a server, on the embedded model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.scripts.loading import SCRIPTS, with_command_on_path


def smoke(directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the script with `qkedit` on the path."""
    environment = with_command_on_path(directory) | {
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    script = ["sh", SCRIPTS / "smoke_serve.sh"]
    return subprocess.run(script, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)


def test_a_working_server_passes(tmp_path: Path) -> None:
    result = smoke(tmp_path, QKEDIT_PLUGIN="scr", QKEDIT_API_KEY="key", EXPECT=".", WAIT="200")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "demo serves; artefacts in ./artefacts"
    answer = json.loads((tmp_path / "artefacts" / "answer.json").read_text())
    assert answer["usage"]["qkedit"]["report"]["cells"] == 64
    assert result.stdout.startswith(answer["choices"][0]["message"]["content"].strip())


@pytest.mark.parametrize("image", ["", "nowhere.png"])
def test_a_missing_image_is_named_before_the_model_is_loaded(tmp_path: Path, image: str) -> None:
    result = smoke(tmp_path, MODEL="./edited", IMAGE=image)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: IMAGE: {image or 'no image'} ")
    assert not (tmp_path / "artefacts").exists()


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    result = smoke(tmp_path, PORT="99999")
    assert result.returncode == 2
    assert "65535" in result.stderr
    assert not (tmp_path / "artefacts" / "answer.json").exists()
