"""Test the whole pipeline on the embedded model: steer, verify, drift, eval, compare, gate."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.cli.command import qkedit
from tests.scripts.loading import run_script


def test_the_pipeline_writes_its_artefacts(tmp_path: Path) -> None:
    settings = {
        "SCENES": "3",
        "BENCHMARKS": "pope.adversarial custom",
        "REQUIRE": "yes_ratio<=1 pope.accuracy>=0",
        "NO_WORSE": "custom.recall:1",
        "QKEDIT_DEVICE": "cpu",
        "QKEDIT_LIMIT": "2",
        "QKEDIT_MAX_NEW_TOKENS": "2",
    }
    result = run_script("ci_gate.sh", tmp_path, settings)
    assert result.code == 0, result.stderr
    assert result.stdout.count("\nok ") == 3
    # Settings of the script reach only the commands that use them; QKEDIT_DEVICE and the like are set by the caller.
    assert not {"QKEDIT_BENCHMARK", "QKEDIT_DATA", "QKEDIT_IMAGES"} & set(re.findall(r"QKEDIT_\w+", result.stderr))
    assert result.stdout.splitlines()[-1] == "./edited may be shipped; artefacts in ./artefacts"

    artefacts = tmp_path / "artefacts"
    base, edited = (json.loads((artefacts / name / "result.json").read_text()) for name in ("base", "edited"))
    assert base["run"]["weights_sha256"] != edited["run"]["weights_sha256"]
    assert [(row["benchmark"], row["split"]) for row in base["results"]] == [("pope", "adversarial"), ("custom", None)]
    comparison = json.loads((artefacts / "comparison.json").read_text())
    assert [row["n"] for row in comparison["results"]] == [2, 2]
    assert "### custom (variant words): 2 items" in (artefacts / "comparison.md").read_text()
    assert json.loads((artefacts / "drift.json").read_text())["images"] == {"measured": 2, "there": 3}
    assert {"plan.json", "report.json", "verification.json", "qkedit.json"} <= {
        file.name for file in artefacts.iterdir()
    }

    failed = qkedit("gate", artefacts / "edited", "--require", "yes_ratio<0", "--require", "pope.accuracy>=0")
    assert (failed.code, failed.stdout.count("FAILED")) == (3, 1)
    # The result of compare can be required too: here that the interval of a loss is above a limit.
    found = qkedit("gate", artefacts / "comparison.json", "--require", "custom.recall_difference>=-1")
    assert found.code == 0
