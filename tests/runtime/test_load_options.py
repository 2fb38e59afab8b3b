"""Test the options of loading (devices, attention, quantisation), and one-sentence errors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import qkedit
from qkedit.demo import SMALL_DEMO
from qkedit.errors import UsageError
from qkedit.evaluation.runs.local_model import LocalModel
from qkedit.runtime import load_options
from qkedit.runtime.generation import respond
from qkedit.runtime.load_options import Placement
from qkedit.runtime.loading import load
from tests.cli.command import qkedit as run

PROMPT = "Please describe this image in detail."


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (64, 64), "navy")


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_chosen_attention_is_used_and_plugins_work_with_it(name: str, picture: Image.Image) -> None:
    loaded = load(SMALL_DEMO, dtype="float32", attn_implementation=name)
    assert loaded.model.config.get_text_config()._attn_implementation == name
    # Both implementations give equal answers.
    assert respond(loaded, [picture], PROMPT, max_new_tokens=8).text == _plain(picture)
    plugins = [qkedit.SCR(layers="0-3")]
    answers = [
        respond(one, [picture], PROMPT, plugins, max_new_tokens=8).text
        for one in (loaded, load(SMALL_DEMO, dtype="float32"))
    ]
    assert answers[0] == answers[1]


def _plain(picture: Image.Image) -> str:
    return respond(load(SMALL_DEMO, dtype="float32"), [picture], PROMPT, max_new_tokens=8).text


@pytest.mark.parametrize("chosen", ["auto", "sequential", {"": "cpu"}])
def test_a_device_map_is_used(chosen: Any, picture: Image.Image, tmp_path: Path) -> None:
    loaded = load(SMALL_DEMO, dtype="float32", device_map=chosen)
    assert respond(loaded, [picture], PROMPT, max_new_tokens=8).text == _plain(picture)
    if isinstance(chosen, dict):
        file = tmp_path / "devices.json"
        file.write_text(json.dumps(chosen))
        assert load(SMALL_DEMO, device_map=str(file)).model.device == torch.device("cpu")
        assert Placement(device_map=str(file)).recorded() == {"device_map": chosen}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"attn_implementation": "sdpaa"}, "--attn-implementation: 'sdpaa' is not an implementation of attention;"),
        ({"attn_implementation": "org/kernel"}, "--attn-implementation: 'org/kernel' is not an implementation"),
        ({"device_map": "everywhere"}, "--device-map: 'everywhere' is unknown; give auto, balanced,"),
        ({"quantization": "int3"}, "--quantization: 'int3' is unknown; give bnb-4bit, bnb-8bit, torchao-int8, or"),
    ],
)
def test_invalid_options_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        load(SMALL_DEMO, **options)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"attn_implementation": "flash_attention_2"}, "flash_attention_2 needs flash-attn, which is not installed"),
        ({"quantization": "bnb-4bit"}, "bnb-4bit needs bitsandbytes, which is not installed; install it, or choose"),
        ({"quantization": "torchao-int8"}, "torchao-int8 needs torchao, which is not installed"),
    ],
)
def test_a_missing_package_is_named(options: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_options, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=sentence):
        load(SMALL_DEMO, **options)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", "does not hold a JSON object"),
        ("{", "cannot be read"),
        ('{"quant_method": "magic"}', "does not hold settings that transformers accepts"),
        ('{"load_in_3bit": true}', "does not hold settings that transformers accepts"),
    ],
)
def test_an_invalid_file_of_quantisation_settings_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=sentence):
        load(SMALL_DEMO, quantization=str(file))


@pytest.mark.parametrize("name", load_options.QUANTIZATIONS)
def test_a_quantised_model_answers(name: str, picture: Image.Image) -> None:
    package = load_options.QUANTIZATIONS[name][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    loaded = load(SMALL_DEMO, quantization=name)
    assert loaded.model.is_quantized
    assert respond(loaded, [picture], PROMPT, max_new_tokens=4).tokens > 0


def test_a_run_records_only_chosen_options() -> None:
    chosen = {"device_map": "auto", "attn_implementation": "eager", "quantization": "bnb-4bit"}
    plain = LocalModel(SMALL_DEMO, dtype="float32").identity()
    placed = LocalModel(SMALL_DEMO, dtype="float32", placement=Placement(**chosen)).identity()
    assert placed == {**plain, **chosen}
    assert not chosen.keys() & plain.keys()  # runs of earlier versions can be resumed


def test_commands_have_the_options(tmp_path: Path, picture: Image.Image) -> None:
    file = tmp_path / "picture.png"
    picture.save(file)
    request = ("generate", SMALL_DEMO, "--image", file, "--max-new-tokens", "2", "--json")
    assert run(*request, "--attn-implementation", "eager", "--device-map", "auto").code == 0
    both = run(*request, "--device-map", "auto", "--device", "cpu")
    assert (both.code, both.document["error"]["where"]) == (2, "--device and --device-map")
    for command in ("serve", "kv-coherence", "eval", "drift"):
        assert "--quantization" in run(command, "--help").stdout
    wrong = run(
        "drift", SMALL_DEMO, "--base", SMALL_DEMO, "--images", tmp_path, "--attn-implementation", "x", "--json"
    )
    assert (wrong.code, wrong.document["error"]["where"]) == (2, "--attn-implementation")
