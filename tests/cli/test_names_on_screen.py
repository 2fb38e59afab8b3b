"""Test that a line break in a name of a model, file or benchmark cannot forge a line of a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from qkedit.cli.commands.laboratory import demo
from qkedit.cli.output import Output
from qkedit.evaluation import drift
from qkedit.evaluation.drift import Drift, ImageDrift
from qkedit.report.experiments.arms_table import ArmsTables
from tests.cli.command import Result, qkedit
from tests.steering.checkpoints import weights, write

FORGED = "FORGED: all is well"
NAME = f"m\n{FORGED}"
STEER = ("--layers", "all", "--k", "1")


def without_forged_lines(result: Result) -> str:
    """Return the output, after checking that it has no forged line."""
    printed = result.stdout + result.stderr
    assert rf"m\n{FORGED}" in printed
    assert not any(line.lstrip().startswith(FORGED) for line in printed.splitlines())
    return printed


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / NAME, weights())


def test_the_name_of_a_model_forges_no_line(model: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    for arguments in (
        ("inspect", model),
        ("inspect", model, "--suggest"),
        ("inspect", model, "--compare", model),
        ("inspect", model, "--csv", tmp_path / f"{NAME}.csv"),
        ("steer", model, *STEER, "--out", edited, "--dry-run"),
        ("steer", model, *STEER, "--out", edited),
        ("verify", edited, "--base", model),
    ):
        result = qkedit(*arguments)
        assert result.code == 0
        without_forged_lines(result)


def test_the_name_of_a_differing_file_forges_no_line(model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(model, base)
    qkedit("steer", base, *STEER, "--out", tmp_path / "edited")
    (tmp_path / "edited" / f"{NAME}.txt").write_text("new")
    result = qkedit("verify", tmp_path / "edited", "--base", base)
    assert result.code == 3
    without_forged_lines(result)


def test_the_name_of_a_benchmark_forges_no_line(tmp_path: Path) -> None:
    row: dict[str, Any] = {"benchmark": "made", "split": NAME, "parser": "p", "n": 1, "metrics": {"sure": 0.5}}
    row |= {"counts": {}, "printed": {}, "warnings": []}
    row["items"] = [
        {"id": "1", "parsed": "yes", "truth": "yes", "right": True, "group": "", "counted": True},
    ]
    file = tmp_path / NAME
    file.write_text(json.dumps({"results": [row]}))
    without_forged_lines(qkedit("gate", file, "--require", "sure>=0.1"))
    without_forged_lines(qkedit("gate", file, "--require", "sure>=0.9"))
    markdown = tmp_path / "compared.md"
    without_forged_lines(qkedit("compare", file, file, "--markdown", markdown))
    assert not any(line.startswith(FORGED) for line in markdown.read_text().splitlines())


def test_the_model_of_a_demonstration_forges_no_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result: Any = SimpleNamespace(
        warnings=(), model_spec=SimpleNamespace(model=NAME), layers=(1,), scenes=SimpleNamespace(count=1)
    )
    result.edited, result.rows, result.as_dict = None, (), dict
    monkeypatch.setattr(ArmsTables, "__rich_console__", lambda *rest: iter(()))
    demo._print(Output("demo"), result, None, None)
    without_forged_lines(Result(0, *capsys.readouterr()))


def test_the_model_of_drift_forges_no_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / f"{NAME}.png")
    moved = ImageDrift(str(images / f"{NAME}.png"), (0.5,), (True,), "one", f"two\n{FORGED}")
    monkeypatch.setattr(drift, "drift", lambda *arguments, **options: Drift((moved,)))
    without_forged_lines(qkedit("drift", model, "--base", model, "--images", images))
