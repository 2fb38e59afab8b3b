"""Test that second images are found by file name, and that missing ones are reported before a model is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qkedit.demo import SMALL_DEMO
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.errors import UsageError
from qkedit.evaluation.runs.backend import EvalRequest
from qkedit.evaluation.runs.local_model import LocalModel, Shared
from qkedit.images import read_image
from qkedit.plugins.contrast.image_contrast import ImageContrast
from qkedit.plugins.contrast.masked_pictures import OAVCD
from qkedit.plugins.contrast.second_images import provider_of
from qkedit.plugins.core.pictures import check_files
from qkedit.plugins.dscr.plugin import DSCR
from qkedit.plugins.settings import PluginSettings, make_plugins, with_absolute_paths
from qkedit.runtime.generation import respond
from tests.cli.command import qkedit
from tests.evaluation.runs.recording_model import questions
from tests.plugins.contrast.tiny_image_models import save_vit


def image(file: Path, colour: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(file)
    return file


def colour_of(found: Image.Image) -> Any:
    return found.getpixel((0, 0))


RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


def test_second_images_come_from_a_directory_pairs_or_one_file(tmp_path: Path) -> None:
    street = image(tmp_path / "images/town/street.png", "white")
    garden = image(tmp_path / "images/garden.png", "white")
    image(tmp_path / "masked/street.jpg", "red")
    image(tmp_path / "masked/garden.png", "blue")
    pairs = tmp_path / "pairs.jsonl"
    lines = [
        {"image": "street.png", "second": "masked/garden.png"},
        {"image": "town/street.png", "second": "masked/street.jpg"},
        {"image": "garden.png", "second": str(tmp_path / "masked/garden.png")},
    ]
    pairs.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    for place in (tmp_path / "masked", str(pairs)):
        found = [provider_of(place, "second")(read_image(file)) for file in (street, garden)]
        assert colour_of(found[0])[0] > 250
        assert colour_of(found[0])[2] < 5
        assert colour_of(found[1]) == BLUE
        make = ImageContrast(place)
        check_files([make], [street, garden, street])
    # In a directory with equal subdirectories, the longest matching part of the path is used.
    image(tmp_path / "masked/town/street.png", "green")
    assert colour_of(provider_of(tmp_path / "masked", "second")(read_image(street))) == GREEN
    whole = provider_of(tmp_path / "masked/garden.png", "second")
    assert colour_of(whole(Image.new("RGB", (3, 3)))) == BLUE


def test_missing_and_ambiguous_second_images_are_refused(tmp_path: Path) -> None:
    masked = tmp_path / "masked"
    image(masked / "street.png", "red")
    plugin = ImageContrast(masked)
    with pytest.raises(UsageError, match=r"masked: has no second image for garden.png; add it"):
        check_files([plugin], [tmp_path / "street.png", tmp_path / "garden.png"])
    with pytest.raises(UsageError, match="would share one second image"):
        check_files([plugin], [tmp_path / "a/street.png", tmp_path / "b/street.png"])
    image(masked / "street.jpg", "red")
    with pytest.raises(UsageError, match=r"has 2 second images for street.webp"):
        check_files([plugin], [tmp_path / "street.webp"])
    with pytest.raises(UsageError, match="does not come from a file"):
        check_files([plugin], None)
    with pytest.raises(UsageError, match="does not come from a file"):
        plugin.provider(Image.new("RGB", (3, 3)))
    with pytest.raises(UsageError, match="nowhere"):
        ImageContrast(tmp_path / "nowhere.png")
    check_files([ImageContrast(masked / "street.png")], None)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"image": "a.png"}', "line 2 is not a pair of images"),
        ('{"image": "a.png", "second": 3}', "line 2 is not a pair of images"),
        ("[", "line 2 is not a pair of images"),
        ('{"image": "street.png", "second": "b.png"}', "line 2 names street.png again"),
        ('{"image": "garden.png", "second": "gone.png"}', "gone.png is not a file"),
    ],
)
def test_broken_pairs_are_refused(tmp_path: Path, line: str, sentence: str) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"image": "street.png", "second": "b.png"}\n' + line)
    with pytest.raises(UsageError, match=sentence):
        check_files([ImageContrast(pairs)], [Path("garden.png")])


def test_attached_paths_are_stored_as_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "masked").mkdir()
    monkeypatch.chdir(tmp_path)
    stored = with_absolute_paths(PluginSettings("image-sum", {"second": "masked"}))
    assert stored.options == {"second": str(tmp_path / "masked")}
    (made,) = make_plugins([stored])
    assert (made.alpha, made.beta) == (2.0, 0.5)


def test_missing_second_images_are_named_before_the_first_answer(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("street", "garden"):
        image(images / f"{name}.png", "white")
        image(tmp_path / f"masked/{name}.png", "red")
    plugin = PluginSettings("image-contrast", {"second": str(tmp_path / "masked"), "beta": 0.0})
    asked = [
        EvalRequest("pope.random", question, question.prompt, images / question.image, 2)
        for question in (
            replace(questions()[0], id=str(number), image=f"{name}.png")
            for number, name in enumerate(("street", "garden", "street"))
        )
    ]
    shared = Shared()
    backend = LocalModel(SMALL_DEMO, plugins=(plugin,), dtype="float32", batch_size=2, shared=shared)
    with backend.session() as session:
        found = [reply.text for _, reply in session.answers(asked)]
        (tmp_path / "masked/garden.png").unlink()
        with pytest.raises(UsageError, match=r"has no second image for garden.png"):
            next(session.answers(asked))
    image(tmp_path / "masked/garden.png", "red")
    made = make_plugins([plugin])
    for one, text in zip(asked, found, strict=True):
        assert one.image is not None
        assert shared.loaded is not None
        assert text == respond(shared.loaded, [read_image(one.image)], one.prompt, made, max_new_tokens=2).text


def test_second_images_on_the_command_line(tmp_path: Path) -> None:
    """Take the second image from a directory; a missing one is an error before loading; a server is refused."""
    street, garden = (image(tmp_path / f"{name}.png", "white") for name in ("street", "garden"))
    image(tmp_path / "masked/street.png", "red")
    named = ("--plugin", f"image-contrast:second={tmp_path / 'masked'},beta=0")
    short = ("--max-new-tokens", "2", "--device", "cpu")
    answered = qkedit("generate", SMALL_DEMO, "--image", street, *named, *short, "--json").document
    assert answered["report"]["plugins"]["image-contrast"]["steps"] == answered["tokens"]
    missing = qkedit("generate", tmp_path / "no-model", "--image", garden, *named, *short)
    assert (missing.code, "has no second image for garden.png" in missing.sentence()) == (2, True)
    asked = ("attention", tmp_path / "no-model", "--image", garden, *named, *short)
    assert "has no second image for garden.png" in qkedit(*asked).sentence()
    served = qkedit("serve", tmp_path / "no-model", *named, "--port", "0")
    assert (served.code, "does not come from a file" in served.sentence()) == (2, True)


def test_a_run_with_changed_second_images_is_refused(tmp_path: Path) -> None:
    write_scenes(list(make_scenes(1, seed=1, world=SMALL)), scenes := tmp_path / "scenes")
    (picture,) = (scenes / "images").iterdir()
    image(tmp_path / f"masked/{picture.name}", "red")
    places = ("--data", scenes, "--images", scenes / "images", "--out", tmp_path / "out", "--limit", "1")
    named = ("--plugin", f"image-contrast:second={tmp_path / 'masked'}", "--max-new-tokens", "2", "--device", "cpu")
    command = ("eval", SMALL_DEMO, "-b", "pope.random", *places, *named, "--json")
    assert [qkedit(*command).document["asked"] for _ in range(2)] == [1, 0]
    image(tmp_path / "masked/other.png", "blue")
    assert qkedit(*command).document["asked"] == 0
    image(tmp_path / f"masked/{picture.name}", "green")
    changed = qkedit(*command)
    assert (changed.code, "plugin_files_sha256 was" in changed.stdout) == (2, True)
    (tmp_path / f"masked/{picture.name}").unlink()
    assert "has no second image" in qkedit(*command, "--overwrite").stdout
    assert (tmp_path / "out/result.json").is_file()


def test_the_identity_of_a_run_includes_second_images_in_order(tmp_path: Path) -> None:
    """Exchanged pairs are a change."""
    street, garden = (image(tmp_path / f"masked/{name}.png", "red") for name in ("street", "garden"))
    pictures = [Path("garden.png"), Path("street.png"), Path("garden.png")]
    assert ImageContrast(tmp_path / "masked").files_for(pictures) == [garden, street, garden]
    assert ImageContrast(str(street)).files_for(pictures) == [street]
    assert ImageContrast(lambda picture: picture).files_for(pictures) == []
    vit = save_vit(tmp_path / "vit")
    names = {file.name for file in OAVCD(vit).files_for(pictures)}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in DSCR(depth=vit).files_for(pictures)} == names
    assert DSCR(depth=street).files_for(pictures) == [street]
    assert DSCR().files_for(pictures) == []


def test_each_arm_equals_a_single_run(tmp_path: Path) -> None:
    """Answers equal the base's if the second image is the image itself."""
    write_scenes(list(make_scenes(2, seed=1, world=SMALL)), scenes := tmp_path / "scenes")
    places = ("--data", scenes, "--images", scenes / "images", "--out", tmp_path / "out", "--limit", "3")
    arms = ("--each", "--plugin", f"image-contrast:second={scenes / 'images'}", "--plugin", "vcd:alpha=0")
    done = qkedit("eval", SMALL_DEMO, "-b", "pope.random", *places, *arms, "--max-new-tokens", "2", "--device", "cpu")
    assert done.code == 0, done.stderr
    answers = {
        "".join(map(str, sorted(json.loads(line)["answer"] for line in file.read_text("utf-8").splitlines())))
        for file in (tmp_path / "out").rglob("pope.random.jsonl")
    }
    assert len(list((tmp_path / "out").rglob("pope.random.jsonl"))) == 3
    assert len(answers) == 1
