"""Test that MODEL means the same in every command: a directory, a hub id, an alias or `demo`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import qkedit as package
from qkedit.cli.application import made_command
from qkedit.cli.command_table import COMMANDS
from qkedit.errors import UsageError
from tests.cli.command import qkedit

# Arguments of each command for a model M.
WITH_MODEL = {
    "steer": "M --layers all --dry-run",
    "inspect": "M",
    "demo": "M --scenes 2 --workers 1",
    "sweep": "M --scenes 2 --workers 1",
    "tune": "M --scenes 4 --sampler random --no-prune --trials 1",
    "generate": "M --image shown/red.png",
    "kv-coherence": "M --image shown/red.png",
    "attention": "M --image shown/red.png --max-new-tokens 2",
    "serve": "M --port 0",
    "drift": "M --images shown --plugin scr",
    "eval": "M --benchmark custom --questions questions.jsonl --images shown --out run",
}
WITH_BASE = {
    "apply": "delta --base M --out out",
    "export": "full --base M --out out",
    "merge": "delta other --base M --out out",
    "interpolate": "delta --strength 0.5 --base M --out out",
    "verify": "full --base M",
    "revert": "full --base M --out out",
    "inspect": "full --base M",
    "drift": "full --base M --images shown",
    "generate": "full --base M --compare --image shown/red.png",
    "diff": "delta delta --base M",
}
OTHERWISE = {"models": "--check M", "diff": "M full", "diff ": "full M", "inspect": "full --compare M"}
CALLS = [
    (name.strip(), words) for table in (WITH_MODEL, WITH_BASE, OTHERWISE) for name, words in sorted(table.items())
]
# Commands that write to a directory, which is never an alias or a hub id.
DIRECTORY_ALONE = {"plugins add", "plugins remove", "plugins list"}
UNKNOWN = "there is no directory or alias of this name"
NAMES = {
    "no words": f"no words: {UNKNOWN}; give a directory, a hub id such as org/name, or demo.",
    "llava-1.5-77b": f"llava-1.5-77b: {UNKNOWN}; did you mean llava-1.5-7b or llava-1.5-13b or llava-1.5",
    "demo": "demo: the name means both a known model and a directory here; write ./demo for the directory.",
    "./nowhere": "./nowhere: there is no such directory; check the path.",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with edits of the demo model, an image, a question, and a directory named `demo`."""
    directory = tmp_path_factory.mktemp("names")
    for layout in ("full", "delta"):
        package.steer("demo", layers=2, layout=layout, out=directory / layout)  # type: ignore[arg-type]
    package.steer("demo", layers=3, layout="delta", out=directory / "other")
    (directory / "shown").mkdir()
    Image.new("RGB", (40, 30), "red").save(directory / "shown" / "red.png")
    question = {"id": 1, "image": "red.png", "question": "Is it red?", "truth": "yes"}
    (directory / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (directory / "demo").mkdir()
    return directory


def test_every_command_with_a_model_is_tested() -> None:
    taking = {
        name: {str(parameter.name) for parameter in made_command(name).params} & {"model", "base"} for name in COMMANDS
    }
    assert {name for name, names in taking.items() if "model" in names} - DIRECTORY_ALONE == WITH_MODEL.keys()
    assert {name for name, names in taking.items() if "base" in names} == WITH_BASE.keys()


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize(("name", "words"), CALLS, ids=lambda value: value)
def test_a_name_means_the_same_in_every_command(
    name: str, words: str, model: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    run = qkedit(name, *(model if word == "M" else word for word in words.split()), "--quiet")
    assert (run.code, run.sentence().partition("?")[0]) == (2, NAMES[model])


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize(
    "call",
    [
        package.plan,
        package.load,
        package.inspect,
        lambda model: package.generate(model, [], "Is it red?"),
        lambda model: package.drift(model, "shown", base=model),
        lambda model: package.apply("delta", base=model, out="out"),
        lambda model: package.verify("full", base=model),
        lambda model: package.diff(model, "full"),
    ],
)
def test_a_name_means_the_same_in_python(
    call: Callable[[str], object], model: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(UsageError) as caught:
        call(model)
    assert str(caught.value).partition("?")[0] == NAMES[model]
