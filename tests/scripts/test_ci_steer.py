"""Test dry run, steer and verify in a pipeline on the embedded model, as the script's comment describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Result
from tests.scripts.loading import run_script


def run(directory: Path, **settings: str) -> Result:
    """Run the script with `qkedit` on the path."""
    return run_script("ci_steer.sh", directory, {"QKEDIT_DEVICE": "cpu", **settings})


def steered(directory: Path, **settings: str) -> dict[str, Any]:
    """Run the script, and return the options in its manifest."""
    result = run(directory, **settings)
    assert result.code == 0, result.stderr
    assert result.stdout == "steered demo into ./edited; artefacts in ./artefacts\n"
    artefacts = directory / "artefacts"
    read = {file.name: json.loads(file.read_text()) for file in artefacts.iterdir()}
    assert set(read) == {"plan.json", "report.json", "verification.json", "qkedit.json"}
    assert read["plan.json"]["options"] == read["qkedit.json"]["options"]
    return read["qkedit.json"]["options"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"layers": "mid", "k": 4, "energy": None}),
        ({"LAYERS": "3", "K": "2", "QKEDIT_LAYERS": "4", "QKEDIT_K": "1"}, {"layers": "3", "k": 2, "energy": None}),
        ({"QKEDIT_LAYERS": "4", "QKEDIT_ENERGY": "0.3"}, {"layers": "4", "energy": 0.3}),
    ],
    ids=["defaults", "its own variables", "the command's variables"],
)
def test_options_come_from_the_environment(
    tmp_path: Path, settings: dict[str, str], expected: dict[str, object]
) -> None:
    options = steered(tmp_path, **settings)
    assert {name: options[name] for name in expected} == expected


def test_a_failing_step_prints_its_error(tmp_path: Path) -> None:
    result = run(tmp_path, LAYERS="99")
    assert (result.code, result.stdout) == (2, "")
    said = json.loads(result.stderr)
    assert (said["status"], said["error"]["where"]) == ("failed", "layers")
    assert json.loads((tmp_path / "artefacts" / "plan.json").read_text()) == said
    assert not (tmp_path / "edited").exists()
