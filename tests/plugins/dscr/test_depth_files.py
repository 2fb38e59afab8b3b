"""Test depth maps in a directory, which are found by the pixels of an image, on the demo and on a server's tensors."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qkedit
from qkedit.demo import SMALL_DEMO
from qkedit.errors import UsageError
from qkedit.images import pixel_sha256
from qkedit.integrations.vllm.hashed_images import FIELD, hash_in, hashing
from qkedit.plugins.core.pictures import files_for, reads_pictures
from qkedit.plugins.dscr.depth import depth_files, is_depth_model
from qkedit.plugins.dscr.plugin import DSCR
from qkedit.runtime.generation import LoadedModel, Prompt, batch_inputs, load, prompt_text


@cache
def demo() -> LoadedModel:
    return load(SMALL_DEMO, dtype="float32")


@cache
def pictures() -> list[Image.Image]:
    made = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in made]


def maps() -> list[torch.Tensor]:
    return list(torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "depth"
    place.mkdir()
    for picture, depth in zip(pictures(), maps(), strict=True):
        np.save(place / f"{pixel_sha256(picture)}.npy", depth.numpy())
    return place


def inputs() -> dict[str, Any]:
    """Return the inputs of two prompts, the second with two images, of which the first is that of the first prompt."""
    first, second, third = pictures()
    prompts = [
        Prompt(prompt_text(demo(), "Is there a cup?", len(images)), images) for images in ((second,), (first, third))
    ]
    return dict(batch_inputs(demo(), prompts))


def logits(plugin: DSCR, **given: Any) -> torch.Tensor:
    with qkedit.attach(demo().model, plugin):
        output = demo().model.generate(
            **given, max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return torch.stack(output.logits)


def test_the_hash_is_of_size_and_pixels() -> None:
    image = pictures()[0]
    assert pixel_sha256(image) == hashlib.sha256(b"64x48" + image.tobytes()).hexdigest()
    assert pixel_sha256(image.convert("RGBA")) == pixel_sha256(image)
    assert pixel_sha256(Image.frombytes("RGB", (48, 64), image.tobytes())) != pixel_sha256(image)


def test_maps_are_found_by_the_images_of_a_batch(directory: Path) -> None:
    first, second, third = maps()
    found = logits(DSCR(depth=directory), **inputs())
    given = logits(DSCR(depth=[second, first, third]), **inputs())
    assert torch.equal(found, given)
    assert not torch.equal(given, logits(DSCR(depth=[first, second, third]), **inputs()))
    beams = {"num_beams": 2}
    torch.testing.assert_close(
        logits(DSCR(depth=directory), **inputs(), **beams),
        logits(DSCR(depth=[second, first, third]), **inputs(), **beams),
    )


def test_an_image_without_a_map(directory: Path, tmp_path: Path) -> None:
    lost = directory / f"{pixel_sha256(pictures()[2])}.npy"
    lost.unlink()
    with pytest.raises(UsageError, match=f"holds no depth map {lost.name}"):
        logits(DSCR(depth=directory), **inputs())
    without = {name: tensor.clone() for name, tensor in inputs().items()}
    with pytest.raises(UsageError, match="the images of the request are not known here"):
        logits(DSCR(depth=directory), **without)


def test_answers_depend_on_the_maps_of_their_images(directory: Path, tmp_path: Path) -> None:
    for name, picture in zip(("a", "b"), pictures(), strict=False):
        picture.save(tmp_path / f"{name}.png")
    plugin = DSCR(depth=directory)
    assert reads_pictures(plugin)
    assert files_for([plugin], [tmp_path / "b.png", tmp_path / "a.png"]) == [
        directory / f"{pixel_sha256(pictures()[index])}.npy" for index in (1, 0)
    ]
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    with pytest.raises(UsageError, match="holds no depth map"):
        files_for([plugin], [tmp_path / "c.png"])


def test_a_directory_of_a_model_holds_no_maps(directory: Path, tmp_path: Path) -> None:
    assert depth_files(str(directory)) is not None
    assert not is_depth_model(directory)
    (directory / "config.json").touch()
    assert depth_files(directory) is None
    assert is_depth_model(directory)
    assert is_depth_model("some/model")
    assert not is_depth_model("depth.png")
    assert not reads_pictures(DSCR(depth="some/model"))


class Processor:
    """vLLM's processor of a model, with two images."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> dict[str, Any]:
        return {"pixel_values": torch.zeros(2, 3, 4, 4), "settings": hf_kwargs}

    def _get_mm_fields_config(self, inputs: Any, settings: Any) -> dict[str, Any]:
        return {"pixel_values": "each"}


def test_hashes_go_to_vllms_workers_with_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(batched=lambda modality, keep_on_cpu: (modality, keep_on_cpu))
    vllm = {"vllm": SimpleNamespace(), "vllm.multimodal": SimpleNamespace()}
    for name, module in {**vllm, "vllm.multimodal.inputs": SimpleNamespace(MultiModalFieldConfig=config)}.items():
        monkeypatch.setitem(sys.modules, name, module)
    items = {"image": SimpleNamespace(get=lambda index: [*pictures()[:1], np.zeros(3)][index], get_count=lambda: 2)}
    processor = hashing(Processor)()
    found = processor._apply_hf_processor_main(items, hf_kwargs={"a": 1})
    assert found["settings"] == {"a": 1}
    assert [hash_in({FIELD: one}) for one in found[FIELD]] == [pixel_sha256(pictures()[0]), "00" * 32]
    assert FIELD not in processor._apply_hf_processor_main({}, {})
    assert processor._get_mm_fields_config(found, {}) == {"pixel_values": "each", FIELD: ("image", True)}
