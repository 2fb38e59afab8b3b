"""Test that the wheel contains all files that the package reads, and runs without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qkedit.demo import SMALL_DEMO
from tests.paths import ROOT

REPOSITORY = ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the contents of the wheel, unpacked like by an installer."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = wheels.iterdir()
    assert wheel.stat().st_size < 12_000_000, "most of it are the two embedded models"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_the_wheel_has_every_file_of_the_package_and_the_configuration(installed: Path) -> None:
    for folder, place in (("qkedit", installed / "qkedit"), ("configs", installed / "qkedit" / "configs")):
        here = {path.relative_to(REPOSITORY / folder) for path in (REPOSITORY / folder).rglob("*") if path.is_file()}
        there = {path.relative_to(place) for path in place.rglob("*") if path.is_file()}
        here = {path for path in here if "__pycache__" not in path.parts}
        assert here - there == set(), folder
    assert (installed / "qkedit" / "py.typed").is_file()


def test_steer_and_verify_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import qkedit; assert qkedit.__file__.startswith(sys.path[0]), qkedit.__file__\n"
        "from qkedit.cli.app import run; run()"
    )
    arguments = ["steer", "--model", SMALL_DEMO, "--layers", "2-5", "--out", "edited", "--no-fsync"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QKEDIT_")}
    for command in (arguments, ["verify", "edited"], ["models"]):
        run = [sys.executable, "-c", program, *command]
        result = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout
