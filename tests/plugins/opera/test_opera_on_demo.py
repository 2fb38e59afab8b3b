"""Test that OPERA answers the demo's questions as an arm of `eval`, in a batch."""

from __future__ import annotations

from pathlib import Path

from qkedit.demo import SMALL_DEMO
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from tests.cli.command import qkedit


def test_opera_is_an_arm_of_eval(tmp_path: Path) -> None:
    write_scenes(list(make_scenes(2, seed=1, world=SMALL)), tmp_path / "scenes")
    data = ("--data", tmp_path / "scenes", "--images", tmp_path / "scenes" / "images", "--limit", "1")
    asked = ("eval", SMALL_DEMO, "-b", "pope.random", *data, "--device", "cpu", "--dtype", "float32")
    found = qkedit(*asked, "--plugin", "opera:beams=2,candidates=3", "--each", "--out", tmp_path / "arms", "--json")
    assert found.code == 0, found.stderr
    assert [(arm["name"], arm["asked"]) for arm in found.document["arms"]] == [("base", 1), ("opera", 1)]
