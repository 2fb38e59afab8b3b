"""Test `plugins add`, `remove` and `list`, `generate` and `kv-coherence` on a copy of the demo."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.plugins.registry import PLUGINS
from tests.cli.command import qkedit

SHORT = ("--max-new-tokens", "6", "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    """Return a user's directory whose weights must not be changed."""
    directory = tmp_path / "model"
    shutil.copytree(demo_checkpoint(SMALL_DEMO), directory)
    yield directory
    for file in demo_checkpoint(SMALL_DEMO).iterdir():
        assert (directory / file.name).read_bytes() == file.read_bytes()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("image") / "scene.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="session")
def depth(image: Path) -> Path:
    file = image.parent / "depth.npy"
    np.save(file, np.linspace(0, 1, 60)[:, None].repeat(80, 1))
    return file


def test_attached_plugins_run_unless_others_are_named(model: Path, image: Path, depth: Path) -> None:
    request = ("generate", model, "--image", image, "--prompt", "what is there", "--json", *SHORT)
    plain = qkedit(*request).document
    assert (plain["plugins"], plain["report"]) == ([], None)

    assert qkedit("plugins", "add", "scr", "--layers", "0-2", "--sources=4", "--model", model).code == 0
    attached = qkedit("plugins", "add", f"dscr:depth={depth},layers=4-7", "--model", model, "--json").document
    expected = [
        {"name": "scr", "options": {"layers": "0-2", "sources": 4}},
        {"name": "dscr", "options": {"depth": str(depth), "layers": "4-7"}},
    ]
    assert attached["plugins"] == expected
    assert json.loads((model / "qkedit-plugins.json").read_bytes()) == {"schema": 1, "plugins": expected}
    assert qkedit("plugins", "list", model, "--json").document["attached"] == expected

    both = qkedit(*request).document
    assert both["plugins"] == expected
    names = f"scr:layers=0-2,sources=4 + dscr:depth={depth},layers=4-7"
    assert both["warnings"] == [f"{names} is attached to the model and acts; --plugin none leaves it out"]
    assert set(both["report"]["plugins"]) == {"scr", "dscr"}
    assert both["report"]["plugins"]["dscr"]["layers"] == [4, 5, 6, 7]
    assert both["report"]["cells"] == 64

    named = qkedit(*request, "--plugin", f"dscr:depth={depth}").document
    assert [plugin["name"] for plugin in named["plugins"]] == ["dscr"]
    assert set(named["report"]["plugins"]) == {"dscr"}
    assert named["warnings"] == []
    none = qkedit(*request, "--plugin", "none").document
    assert (none["text"], none["report"]) == (plain["text"], None)

    assert qkedit("plugins", "remove", "scr", "--model", model).stdout == "Detached scr.\n"
    assert [plugin["name"] for plugin in qkedit("plugins", "list", model, "--json").document["attached"]] == ["dscr"]
    assert qkedit("plugins", "remove", "--model", model, "--json").document["detached"] == ["dscr"]
    assert not (model / "qkedit-plugins.json").exists()
    assert qkedit("plugins", "remove", "--model", model).stdout == "Nothing was attached.\n"


def test_a_relative_path_of_a_depth_map_is_stored_as_absolute(
    model: Path, depth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(depth.parent)
    assert qkedit("plugins", "add", "dscr", "--depth", "depth.npy", "--model", model).code == 0
    (plugin,) = qkedit("plugins", "list", model, "--json").document["attached"]
    assert plugin["options"]["depth"] == str(depth)


def test_published_layers_are_stored(model: Path, tmp_path: Path) -> None:
    """A model with the name of a published one gets its layers unless the user sets others."""
    config = json.loads((model / "config.json").read_bytes())
    published = tmp_path / "llava-1.5-7b-hf"
    published.mkdir()
    config["text_config"]["num_hidden_layers"] = 32
    (published / "config.json").write_text(json.dumps(config))
    attached = qkedit("plugins", "add", "scr", "--diagnosis", "3", "--model", published, "--json").document
    assert attached["plugins"] == [{"name": "scr", "options": {"layers": "0-11", "diagnosis": "3"}}]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "no plug-in is named"),
        (("scrr",), "did you mean 'scr'"),
        (("scr", "--layers", "0-8"), "layers 0 to 7"),
        (("scr", "--layers"), "no value"),
        (("dscr", "--blend", "2"), "0 to 1"),
        (("dscr", "--blend", "much"), "a number"),
        (("--layers", "3", "scr"), "there is no plug-in before"),
        (("none.json",), "cannot be read"),
        (("dscr", "--depth", "gone.npy"), "cannot be read as a depth map"),
    ],
)
def test_attaching_an_invalid_plugin_is_refused(model: Path, words: tuple[str, ...], sentence: str) -> None:
    result = qkedit("plugins", "add", *words, "--model", model)
    assert result.code == 2
    assert sentence in result.sentence()
    assert not (model / "qkedit-plugins.json").exists()


@pytest.mark.parametrize("name", ["qwen2-vl", "org/name", SMALL_DEMO, "no/such/directory"])
def test_plugins_are_attached_to_directories_of_the_user_only(name: str) -> None:
    for words in (("plugins", "add", "scr"), ("plugins", "remove")):
        result = qkedit(*words, "--model", name)
        assert result.code == 2
        assert "not a directory" in result.sentence()


def test_models_without_a_grid_are_refused(tmp_path: Path) -> None:
    from tests import tiny_models

    for family, code, words in (("mllama", 1, "cross-attention layers"), ("llama", 1, "is unknown")):
        directory = tmp_path / family
        tiny_models.config(family).save_pretrained(directory)
        result = qkedit("plugins", "add", "scr", "--model", directory)
        assert result.code == code
        assert words in result.sentence()
        assert os.listdir(directory) == ["config.json"]


def test_available_plugins_are_listed() -> None:
    listed = qkedit("plugins", "list", "--json").document["plugins"]
    assert [plugin["name"] for plugin in listed] == list(PLUGINS)
    assert {"name": "blend", "values": "a number", "default": 1.0} in listed[1]["options"]
    assert "lost_cells" in qkedit("plugins", "list").stdout


def test_compare_answers_with_and_without_edits_and_plugins(
    model: Path, tmp_path: Path, image: Path, depth: Path
) -> None:
    edited = tmp_path / "edited"
    assert qkedit("steer", SMALL_DEMO, "--layers", "2-5", "--out", edited, "--quiet").code == 0
    request = ("generate", edited, "--image", image, "--compare", "--plugin", f"dscr:depth={depth}", *SHORT)
    answers = qkedit(*request, "--json").document["answers"]
    assert [answer["column"] for answer in answers] == ["base", "edited", "with plug-ins"]
    assert [answer["model"] for answer in answers] == [SMALL_DEMO, str(edited), str(edited)]
    assert [len(answer["plugins"]) for answer in answers] == [0, 0, 1]
    for answer, name in zip(answers[:2], (SMALL_DEMO, edited), strict=True):
        alone = qkedit("generate", name, "--image", image, "--json", *SHORT).document
        assert answer["text"] == alone["text"]
    header = qkedit(*request).stdout.splitlines()[0]
    assert header.split()[:2] == ["base", "edited"]
    assert "dscr:depth=" in header

    # `verify` does not compare the file of attached plug-ins with the base.
    assert qkedit("plugins", "add", "scr", "--model", edited).code == 0
    assert qkedit("verify", edited).code == 0
    assert qkedit("generate", model, "--image", image, "--compare", *SHORT).code == 2


def test_an_edited_copy_keeps_the_plugins_on_request(tmp_path: Path) -> None:
    model, edited = tmp_path / "model", tmp_path / "edited"
    shutil.copytree(demo_checkpoint(SMALL_DEMO), model)
    assert qkedit("plugins", "add", "scr", "--model", model).code == 0
    assert qkedit("steer", model, "--layers", "2-5", "--out", edited, "--quiet", "--keep-plugins").code == 0
    (plugin,) = qkedit("plugins", "list", edited, "--json").document["attached"]
    assert plugin["name"] == "scr"
    assert qkedit("verify", edited, "--base", model).code == 0
    assert qkedit("plugins", "remove", "--model", edited).code == 0
    assert qkedit("verify", edited, "--base", model).code == 0


def test_an_unknown_base_can_be_named(model: Path, tmp_path: Path, image: Path) -> None:
    edited = tmp_path / "edited"
    assert qkedit("steer", model, "--layers", "2-5", "--out", edited, "--quiet").code == 0
    request = ("generate", edited, "--image", image, "--compare", "--json", *SHORT)
    unknown = qkedit(*request, "--plugin", "scr").document
    assert [answer["column"] for answer in unknown["answers"]] == ["edited", "with plug-ins"]
    assert "--base" in unknown["warnings"][0]
    known = qkedit(*request, "--base", model).document
    assert [answer["column"] for answer in known["answers"]] == ["base", "edited"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--plugin", "scr"), 2, "plug-ins act on images"),
        (("--image", "no/such.png"), 2, "no/such.png"),
        (("--image", "config.json"), 2, "is not an image"),
        (("--image", "THIN"), 2, "has 1 × 201 pixels, one side more than 200 times the other"),
        (("--image", "IMAGE", "--plugin", "scr:layers=8"), 2, "0 to 7"),
        (("--image", "IMAGE", "--dtype", "int8"), 2, "not a dtype"),
        (("--image", "IMAGE", "--plugin", "dscr:depth=no/such/model"), 1, "not a valid hub id"),
        (
            ("--image", "IMAGE", "--plugin", f"dscr:depth={demo_checkpoint(SMALL_DEMO)}"),
            1,
            "cannot be loaded as a depth model",
        ),
    ],
)
def test_invalid_requests_are_refused(
    image: Path, arguments: tuple[str, ...], code: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_checkpoint(SMALL_DEMO))
    thin = image.with_name("thin.png")
    Image.new("1", (1, 201)).save(thin)
    files = {"IMAGE": str(image), "THIN": str(thin)}
    given = [files.get(argument, argument) for argument in arguments]
    result = qkedit("generate", SMALL_DEMO, "--prompt", "hello", "--device", "cpu", *given)
    assert result.code == code
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_depth_map_that_blurs_the_image_causes_a_warning(image: Path, depth: Path) -> None:
    document = qkedit(
        "generate", SMALL_DEMO, "--image", image, "--plugin", f"dscr:depth={depth},standardize=false", "--json", *SHORT
    ).document
    assert "nearly the image's average" in document["warnings"][0]


def test_coherence_is_printed_and_plotted_per_layer(image: Path, depth: Path, tmp_path: Path) -> None:
    picture = tmp_path / "keys.png"
    request = ("kv-coherence", SMALL_DEMO, "--image", image, "--device", "cpu", "--dtype", "float32")
    result = qkedit(*request, "--plugin", f"dscr:depth={depth},layers=4-7", "--plot", picture, "--json")
    rows = result.document["layers"]
    assert [row["layer"] for row in rows] == list(range(8))
    assert len(rows[3]["before"]["coherence_by_head"]) == 2
    for row in rows[:4]:
        assert row["after"]["coherence"] == pytest.approx(row["before"]["coherence"], abs=1e-5)
    assert all(abs(row["after"]["coherence"] - row["before"]["coherence"]) > 1e-3 for row in rows[4:])
    assert Image.open(picture).size[0] > Image.open(picture).size[1]
    table = qkedit(*request).stdout.splitlines()
    assert table[0].split() == ["layer", "coherence", "entropy"]
    assert len([line for line in table if line.strip() and line.split()[0].isdigit()]) >= 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "no image is given"),
        (("--image", "IMAGE", "--plot", "keys.png", "--layer", "8"), "layer 8 has no keys"),
    ],
)
def test_invalid_requests_of_coherence_are_refused(
    image: Path, arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(image) if argument == "IMAGE" else argument for argument in arguments]
    result = qkedit("kv-coherence", SMALL_DEMO, "--device", "cpu", *given)
    assert result.code == 2
    assert sentence in result.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("picture", "matplotlib", "code", "sentence"),
    [
        ("keys.jpeg", True, 2, "'keys.jpeg' has an unknown ending; end the name in .png or .svg or .pdf"),
        ("missing/keys.png", True, 2, "there is no directory missing"),
        ("folder.png", True, 2, "folder.png is a directory"),
        ("keys.png", False, 1, "pip install 'qkedit[plot]'"),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    image: Path,
    picture: str,
    matplotlib: bool,
    code: int,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: object, **__: object) -> None:
        pytest.fail("the model is loaded")

    monkeypatch.setattr("qkedit.runtime.generation.load", load)
    if not matplotlib:
        monkeypatch.setattr("qkedit.report.plots.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    result = qkedit("kv-coherence", SMALL_DEMO, "--device", "cpu", "--image", image, "--plot", picture)
    assert result.code == code
    assert result.sentence().startswith("--plot: ")
    assert sentence in result.sentence()
    assert os.listdir(tmp_path) == ["folder.png"]


def test_an_earlier_plot_is_kept_until_the_new_one_is_complete(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    picture = tmp_path / "keys.png"
    picture.write_bytes(b"earlier")
    monkeypatch.setattr(Path, "replace", fail)
    result = qkedit("kv-coherence", SMALL_DEMO, "--device", "cpu", "--image", image, "--plot", picture)
    assert result.code == 1
    assert "no space left on device" in result.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == ["keys.png"]
    assert picture.read_bytes() == b"earlier"
