"""Test Python functions that correspond to flags: they give the same results as the flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import qkedit
from qkedit.demo import SMALL_DEMO
from tests.cli.command import qkedit as command
from tests.evaluation.runs.openai_server import Server, chat_completion, serve

__all__ = ["serve"]  # a fixture


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "edited"
    qkedit.steer(SMALL_DEMO, out=out, layers=range(2, 4), k=4, fsync=False)
    return out


def test_suggest_equals_the_flag_of_inspect() -> None:
    suggestion = qkedit.suggest(SMALL_DEMO, heads="0-3")
    shown = command("inspect", SMALL_DEMO, "--heads", "0-3", "--suggest", "--json").document["suggestion"]
    assert suggestion.reason == shown["reason"]
    assert json.loads(json.dumps(suggestion.as_dict()["layers"])) == shown["layers"]
    chosen = qkedit.suggest(SMALL_DEMO, layers="2-3")
    assert set(chosen.scores) == {2, 3}


@pytest.mark.parametrize("before", [SMALL_DEMO, None])
def test_comparing_spectra_equals_the_flags_of_inspect(before: str | None, edited: Path) -> None:
    """With None, the base is that of the manifest."""
    compared = qkedit.compare_spectra(before, edited, layers=[2, 5], k=2)
    words = ("inspect", edited, "--layers", "2,5", "--k", "2", "--json")
    shown = command(*words, *(("--base", before) if before else ("--compare", "base"))).document
    assert [layer.layer for layer in compared.layers] == [2, 5]
    assert json.loads(json.dumps(compared.as_dict()))["layers"] == shown["layers"]
    changed, unchanged = (layer.heads[0] for layer in compared.layers)
    assert changed.before != changed.after
    assert unchanged.before == unchanged.after


def test_evaluating_an_endpoint_equals_the_flag_of_eval(serve: Callable[..., Server], tmp_path: Path) -> None:
    pytest.importorskip("openai")
    server = serve(lambda body, number: chat_completion("Yes, there is."))
    Image.new("RGB", (64, 64), "navy").save(tmp_path / "a.png")
    questions = tmp_path / "questions.jsonl"
    question = {"id": "1", "image": "a.png", "question": "is there a cup in the image", "truth": "yes"}
    questions.write_text(json.dumps(question) + "\n")
    finished = qkedit.evaluate_endpoint(
        server.url, "custom", data=questions, images=tmp_path, out=tmp_path / "run", concurrency=1, max_new_tokens=3
    )
    assert finished.scores[0].metrics["accuracy"] == 1
    assert server.bodies[0]["max_tokens"] == 3
    words = ("--questions", questions, "--images", tmp_path, "--out", tmp_path / "run", "--max-new-tokens", "3")
    again = command("eval", "-b", "custom", "--endpoint", server.url, *words, "--json").document
    assert again["asked"] == 0
    with pytest.raises(qkedit.QkeditError, match="is not the URL of a directory"):
        qkedit.evaluate_endpoint(
            server.url, "custom", data=questions, images=tmp_path, out=tmp_path / "run", image_urls="here"
        )
