"""Test that `qkedit eval --endpoint` on the application of `qkedit serve` equals the model itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qkedit.demo import SMALL_DEMO
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.plugins.settings import PluginSettings
from qkedit.runtime.generation import load
from qkedit.serving.openai_server import build_application
from qkedit.serving.plugin_switch import PluginSwitch
from qkedit.serving.requests.image_policy import ImagePolicy
from qkedit.serving.served_model import ServedModel
from tests.cli.command import qkedit
from tests.serving.server_process import serving_in_a_thread

KEY = "a key"
LOCAL = ("--device", "cpu", "--dtype", "float32")


def answers(out: Path) -> dict[str, str]:
    lines = (out / "answers" / "pope.random.jsonl").read_text("utf-8").splitlines()
    return {row["id"]: row["answer"] for row in map(json.loads, lines)}


def test_evaluating_a_server_equals_evaluating_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(list(make_scenes(2, seed=1, world=SMALL)), tmp_path / "scenes")
    request = ("--data", tmp_path / "scenes", "--images", tmp_path / "scenes" / "images", "-b", "pope.random")
    request = (*request, "--limit", "5", "--max-new-tokens", "4", "--json")
    plugin = ("--plugin", "scr:layers=0-1,sources=4")
    local = qkedit("eval", SMALL_DEMO, *request, *LOCAL, *plugin, "--out", tmp_path / "local")
    assert local.code == 0, local.stdout
    loaded = load(SMALL_DEMO, device="cpu", dtype="float32")
    settings = [PluginSettings("scr", {"layers": "0-1", "sources": 4})]
    model = ServedModel(SMALL_DEMO, loaded, PluginSwitch(loaded.model, settings))
    with serving_in_a_thread(build_application(model, ImagePolicy(), api_key=KEY)) as url:
        served = ("eval", "--endpoint", url, *request, "--concurrency", "2", "--out", tmp_path / "served")
        monkeypatch.delenv("QKEDIT_API_KEY", raising=False)
        refused = qkedit(*served)
        assert refused.code == 1
        assert "refused the key (401" in refused.document["error"]["what"]
        assert not (tmp_path / "served").exists()
        monkeypatch.setenv("QKEDIT_API_KEY", KEY)
        document = qkedit(*served).document
        again = qkedit(*served).document
    assert (document["status"], document["asked"], again["asked"]) == ("done", 5, 0)
    assert document["run"]["endpoint"] == url
    assert "no hash of the weights" in document["warnings"][0]
    assert answers(tmp_path / "served") == answers(tmp_path / "local")
    assert document["results"] == local.document["results"]
    assert KEY not in (tmp_path / "served" / "result.json").read_text("utf-8")
