"""Test that every run reports its chat template and loading, and that questions without images are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from qkedit.demo import SMALL_DEMO, demo_checkpoint
from tests.cli.command import qkedit

OWN = {
    "source": "processor",
    "sha256": hashlib.sha256((demo_checkpoint(SMALL_DEMO) / "chat_template.jinja").read_bytes()).hexdigest(),
    "form": "parts",
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_every_run_records_its_chat_template(image: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"id": 1, "image": image.name, "question": "Is it red?", "truth": "yes"}) + "\n")
    ask = ["--benchmark", "custom", "--questions", questions, "--images", tmp_path, "--out", tmp_path / "run"]
    loading = ["--device", "cpu", "--dtype", "float32", "--attn-implementation", "eager"]
    loaded = {"dtype": "float32", "device": "cpu", "attn_implementation": "eager"}
    common = [*loading, "--json", "--plugin", "scr:layers=0-1"]
    short = ["--max-new-tokens", "2"]
    for command in (
        ["generate", SMALL_DEMO, "--image", image, *short],
        ["drift", SMALL_DEMO, "--images", image, *short],
        ["kv-coherence", SMALL_DEMO, "--image", image],
        ["attention", SMALL_DEMO, "--image", image, *short],
        ["eval", SMALL_DEMO, *ask, *short],
    ):
        run = qkedit(*command, *common)
        assert run.code == 0, run.stderr
        document = run.document
        assert document.get("run", document)["chat_template"] == OWN
        said = document["run"] if command[0] == "eval" else document["loading"]
        assert {name: said.get(name) for name in loaded} == loaded
    bare = qkedit("generate", SMALL_DEMO, "--image", image, "--chat-template", "none", *short, *common)
    assert bare.document["chat_template"] is None
    again = qkedit("eval", SMALL_DEMO, *ask, *short, *common, "--chat-template", "none")
    assert again.code == 2  # another run, although no question is left
    assert "chosen_template was null" in again.document["error"]["what"]


def test_a_missing_image_is_an_error_or_a_warning(image: Path) -> None:
    refused = qkedit("generate", SMALL_DEMO, "--device", "cpu")
    assert (refused.code, refused.sentence()) == (
        2,
        "--image: there is no image to describe; give one, or a --prompt.",
    )
    asked = qkedit("generate", SMALL_DEMO, "--prompt", "is it red", "--max-new-tokens", "2", "--device", "cpu")
    assert asked.code == 0
    assert "warning: no image is given, so the model answers from the text alone\n" in asked.stderr
