"""Test the embedded checkpoint: small, complete, with published names, and usable without a network."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from qkedit.demo import DEMO, DEMOS, demo_checkpoint


@pytest.fixture(scope="module", autouse=True)
def no_network() -> Iterator[None]:
    """Make every connection fail, as without a network."""

    def refuse(*_: object) -> None:
        raise OSError("the demo checkpoint must not need a network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="module", params=DEMOS)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return demo_checkpoint(request.param)


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> ProcessorMixin:
    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    model, information = AutoModelForImageTextToText.from_pretrained(checkpoint, output_loading_info=True)
    return model.eval(), information


def headers(directory: Path) -> dict[str, dict[str, Any]]:
    """Return every shard's header as safetensors defines it: a length, then JSON."""
    found = {}
    for shard in sorted(directory.glob("*.safetensors")):
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            found[shard.name] = json.loads(file.read(length))
    return found


def picture(colour: str) -> Image.Image:
    image = Image.new("RGB", (160, 120), "lightgrey")
    ImageDraw.Draw(image).ellipse((40, 20, 110, 90), fill=colour)
    return image


def ask(processor: ProcessorMixin, image: Image.Image) -> Any:
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": "Describe the picture."}],
        }
    ]
    return processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def test_both_checkpoints_are_small() -> None:
    files = [file for name in DEMOS for file in demo_checkpoint(name).rglob("*")]
    assert sum(file.stat().st_size for file in files) < 12_000_000


def test_the_default_model_has_the_head_size_and_the_words_of_a_large_one() -> None:
    directory = demo_checkpoint(DEMO)
    text = json.loads((directory / "config.json").read_text(encoding="utf-8"))["text_config"]
    assert text["head_dim"] >= 64
    tokenizer = AutoProcessor.from_pretrained(directory).tokenizer
    assert len(tokenizer.tokenize(" two orange shells on the left")) == 6


def test_every_tensor_is_in_the_shard_of_the_index(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text(encoding="utf-8"))
    placed: dict[str, str] = {}
    total = 0
    for shard, header in headers(checkpoint).items():
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            assert name not in placed
            assert entry["dtype"] == "BF16"
            placed[name] = shard
            start, end = entry["data_offsets"]
            total += end - start
    assert placed == index["weight_map"]
    assert total == index["metadata"]["total_size"]
    assert len(set(placed.values())) >= 3


def test_the_decoder_is_grouped_query_with_published_names(checkpoint: Path, config: dict[str, Any]) -> None:
    text = config["text_config"]
    hidden, size, mlp = text["hidden_size"], text["head_dim"], text["intermediate_size"]
    shapes = {
        name: entry["shape"]
        for header in headers(checkpoint).values()
        for name, entry in header.items()
        if name != "__metadata__"
    }
    projection = re.compile(r"language_model\.model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.weight")
    found = {match.groups(): shapes[name] for name in shapes if (match := projection.fullmatch(name))}
    assert text["num_key_value_heads"] < text["num_attention_heads"]
    wide, narrow = text["num_attention_heads"] * size, text["num_key_value_heads"] * size
    expected = {"q": [wide, hidden], "k": [narrow, hidden], "v": [narrow, hidden], "o": [hidden, wide]}
    layers = range(text["num_hidden_layers"])
    assert found == {(str(layer), kind): shape for layer in layers for kind, shape in expected.items()}
    assert shapes["language_model.model.layers.0.mlp.gate_proj.weight"] == [mlp, hidden]
    outer = {re.match(r"vision_tower\.\w+|\w+", name).group() for name in shapes}  # type: ignore[union-attr]
    assert outer == {"language_model", "vision_tower.vision_model", "multi_modal_projector"}


def test_transformers_loads_it_without_missing_or_unexpected_keys(
    loaded: tuple[PreTrainedModel, dict[str, Any]], checkpoint: Path
) -> None:
    model, information = loaded
    assert not any(information.values()), information
    assert model.dtype == torch.bfloat16
    tensors = sum(len(header) - 1 for header in headers(checkpoint).values())
    assert len(model.state_dict()) == tensors


def test_an_image_becomes_a_square_grid_of_image_tokens(processor: ProcessorMixin, config: dict[str, Any]) -> None:
    inputs = ask(processor, picture("red"))
    side = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]
    assert side >= 7
    assert int((inputs["input_ids"] == config["image_token_index"]).sum()) == side * side
    assert side * side == config["image_seq_length"]


def test_answers_depend_on_the_image(
    processor: ProcessorMixin, loaded: tuple[PreTrainedModel, dict[str, Any]]
) -> None:
    model, _ = loaded
    red, blue = ask(processor, picture("red")), ask(processor, picture("blue"))
    torch.testing.assert_close(red["input_ids"], blue["input_ids"])
    tokens = model.generate(**red, max_new_tokens=5, min_new_tokens=5)
    prompt = red["input_ids"].shape[1]
    assert tokens.shape == (1, prompt + 5)
    assert isinstance(processor.decode(tokens[0, prompt:], skip_special_tokens=True), str)
    with torch.no_grad():
        difference = model(**red).logits[0, -1] - model(**blue).logits[0, -1]
    assert difference.abs().max() > 0


def test_the_model_card_has_the_licence_field(checkpoint: Path) -> None:
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    front_matter = card.split("---\n")[1]
    assert "license: apache-2.0\n" in front_matter


@given(text=st.text(max_size=60).filter(lambda text: "<" not in text))
def test_decoding_returns_any_encoded_text(processor: ProcessorMixin, text: str) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_each_word_of_a_scene_is_one_token(processor: ProcessorMixin) -> None:
    assert processor.tokenizer.tokenize(" there is a small bird near the tree") == [
        "Ġthere", "Ġis", "Ġa", "Ġsmall", "Ġbird", "Ġnear", "Ġthe", "Ġtree",
    ]  # fmt: skip


def test_the_chat_template_joins_turns(processor: ProcessorMixin) -> None:
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        {"role": "user", "content": "A cat?"},
    ]
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == (
        "USER: <image>\nIs there a dog? ASSISTANT: No.</s>USER: A cat? ASSISTANT:"
    )
