"""Test loading, prompting and answering one request on transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.errors import QkeditError, UsageError
from qkedit.images import read_image
from qkedit.plugins.scr.plugin import SCR
from qkedit.runtime.generation import LoadedModel, load, request_inputs, respond


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(SMALL_DEMO, dtype="float32")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def test_a_model_is_loaded_in_its_dtype_for_inference(demo: LoadedModel) -> None:
    assert demo.model.dtype == torch.float32
    assert not demo.model.training
    assert load(SMALL_DEMO).model.dtype == torch.bfloat16


def test_the_prompt_equals_that_of_the_chat_template(demo: LoadedModel, image: Image.Image) -> None:
    inputs = request_inputs(demo, [image, image], "what is there")
    text = demo.processor.decode(inputs["input_ids"][0])
    expected = demo.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "what is there"}]}],
        add_generation_prompt=True,
    )
    assert text.replace("<image>" * 64, "<image>") == demo.processor.decode(
        demo.processor.tokenizer(expected)["input_ids"]
    )
    assert inputs["pixel_values"].shape[0] == 2
    assert "pixel_values" not in request_inputs(demo, [], "what is there")


def test_a_prompt_with_the_placeholder_of_an_image_is_refused(demo: LoadedModel, image: Image.Image) -> None:
    for images in ([image], []):
        with pytest.raises(UsageError, match="holds '<image>', which stands for an image") as caught:
            respond(demo, images, "<image>\nwhat is it")
        assert str(caught.value).endswith("take it out; images are given separately.")


def test_the_bare_prompt_has_no_template(demo: LoadedModel, image: Image.Image) -> None:
    inputs = request_inputs(replace(demo, chat_template="none"), [image], "what is there")
    text = demo.processor.decode(inputs["input_ids"][0], skip_special_tokens=False)
    assert text.endswith("<image>what is there")
    assert int((inputs["input_ids"] == demo.model.config.image_token_id).sum()) == 64


def test_an_answer_equals_that_of_generate(demo: LoadedModel, image: Image.Image) -> None:
    inputs = request_inputs(demo, [image], "what is there")
    new = demo.model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = respond(demo, [image], "what is there", max_new_tokens=5)
    assert answer.text == demo.processor.decode(new, skip_special_tokens=True).strip()
    assert answer.tokens == len(new)
    assert answer.report is None
    plugged = respond(demo, [image], "what is there", [SCR(layers="0-1")], max_new_tokens=5)
    assert plugged.report is not None
    assert set(plugged.report.plugins) == {"scr"}
    assert respond(demo, [image], "what is there", max_new_tokens=5).text == answer.text


def test_an_ambiguous_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (SMALL_DEMO, "qwen2-vl"):
        (tmp_path / name).mkdir()
        with pytest.raises(UsageError, match=rf"write \./{name}"):
            load(name)


def test_models_that_cannot_be_loaded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QkeditError, match="transformers cannot load it"):
        load(str(tmp_path))
    import transformers

    def lacking(*arguments: Any, **settings: Any) -> None:
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library\nmore")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lacking)
    with pytest.raises(QkeditError, match=r"Torchvision library.*pip install 'qkedit\[runtime\]'"):
        load(str(demo_checkpoint(SMALL_DEMO)))


@pytest.mark.parametrize(
    ("file", "broken"),
    [
        ("tokenizer_config.json", {"eos_token": 3}),  # a TypeError of transformers
        ("tokenizer.json", {"added_tokens": 1e15}),  # a bare Exception of tokenizers
    ],
)
def test_broken_files_are_one_sentence(tmp_path: Path, file: str, broken: dict[str, Any]) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo_checkpoint(SMALL_DEMO), model)
    (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | broken))
    with pytest.raises(QkeditError, match="transformers cannot load it") as caught:
        load(str(model))
    assert "--debug" not in str(caught.value)


def test_missing_weights_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers would initialise them at random with only a log message."""
    model = tmp_path / "model"
    shutil.copytree(demo_checkpoint(SMALL_DEMO), model)
    shard = model / "model-00002-of-00003.safetensors"
    tensors = load_file(shard)
    lost = sorted(name for name in tensors if "proj.weight" in name)[:4]
    save_file({name: tensor for name, tensor in tensors.items() if name not in lost}, shard, {"format": "pt"})
    index = model / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {name: weight_map[name] for name in weight_map if name not in lost}})
    )
    with pytest.raises(
        QkeditError, match=r"lacks weights of the model \(.*proj\.weight, .*, .* and 1 more\)"
    ) as caught:
        load(str(model))
    for name in lost[:3]:
        assert ".".join(name.split(".")[-4:]) in str(caught.value)
    assert "REPORT" not in capfd.readouterr().err


def test_images_are_read_or_refused(tmp_path: Path, image: Image.Image) -> None:
    image.convert("RGBA").save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").mode == "RGB"
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "c.png").write_text("text")
    for name, words in {"b.png": "cannot be read", "c.png": "not an image", "d.png": "cannot be read"}.items():
        with pytest.raises(UsageError, match=words) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


def test_a_config_of_a_far_larger_model_is_refused_before_it_is_built(tmp_path: Path) -> None:
    directory = shutil.copytree(demo_checkpoint(SMALL_DEMO), tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    del config["text_config"]  # then the config describes LLaMA's seven billion parameters
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(QkeditError, match=r"describes 6\.\d+e\+09 parameters, and the weights have"):
        load(str(directory))


def test_a_config_of_more_layers_than_tensors_is_refused_before_they_are_made(tmp_path: Path) -> None:
    directory = shutil.copytree(demo_checkpoint(SMALL_DEMO), tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1_000_008
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(QkeditError, match="1,000,008 layers or experts, and the weights have 134 tensors"):
        load(str(directory))
