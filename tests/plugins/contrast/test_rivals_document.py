"""Run the Python of docs/rivals.md on second images, which masks the most attended patches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qkedit.plugins.core.pictures import pictures_of
from qkedit.runtime.generation import load, prompt_text

DOCUMENT = Path(__file__).parents[3] / "docs" / "rivals.md"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the names that the page's Python defines, in a directory with its picture."""
    section = DOCUMENT.read_text("utf-8").split("## Provide second images\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {"__name__": "rivals"}
    place = tmp_path_factory.mktemp("document")
    Image.effect_noise((60, 40), 80).convert("RGB").save(place / "street.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for block in blocks[:-1]:
            exec(compile(block, str(DOCUMENT), "exec", dont_inherit=True), names)
    loaded = load("demo", device="cpu")
    names |= {"processor": loaded.processor, "texts": [prompt_text(loaded, "describe", 1)]}
    names |= {"inputs": {"input_ids": torch.tensor([[1]])}, "picture": names["Image"].new("RGB", (8, 8))}
    exec(compile(blocks[-1], str(DOCUMENT), "exec", dont_inherit=True), names)
    return names


def test_a_function_and_a_plugin_of_it(written: dict[str, Any]) -> None:
    assert written["answer"].report.plugins["image-contrast"].steps == written["answer"].tokens
    plugin = written["MaskedCentre"]()
    assert plugin.name == "masked-centre"
    second = plugin.provider(Image.new("RGB", (8, 8), "white"))
    assert (second.getpixel((4, 4)), second.getpixel((0, 0))) == ((0, 0, 0), (255, 255, 255))
    stored = pictures_of(written["inputs"])
    assert stored is not None
    larger = stored.inputs_with([[Image.new("RGB", (100, 30))]])
    assert {"input_ids", "pixel_values"} <= larger.keys()


def test_the_most_attended_patches_are_masked(written: dict[str, Any], tmp_path: Path) -> None:
    """Compute the tiny transformer's attention from its weights."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, weight in vit.named_parameters():
            if "attention" in name and weight.ndim == 2:
                weight.mul_(30)
    vit.save_pretrained(tmp_path)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    picture = Image.effect_noise((64, 32), 80).convert("RGB")
    masked = np.asarray(written["salient_masked"](picture, str(tmp_path), 0.25))

    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    seen: list[torch.Tensor] = []
    attention = vit.get_submodule(next(name for name, _ in vit.named_modules() if name.endswith("attention")))
    with attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])), torch.no_grad():
        vit(pixels)
    queries, keys = (
        next(module for name, module in attention.named_modules() if name.split(".")[-1] in names)(seen[0])[0]
        for names in (("query", "q_proj"), ("key", "k_proj"))
    )
    shares = sum(
        (queries[0, head * 8 : head * 8 + 8] @ keys[:, head * 8 : head * 8 + 8].T / 8**0.5).softmax(0)[1:]
        for head in (0, 1)
    )
    hidden = {int(patch) for patch in shares.argsort(descending=True)[:4]}
    for patch in range(16):
        top, left = patch // 4 * 8, patch % 4 * 16
        cell = (slice(top, top + 8), slice(left, left + 16))
        assert np.array_equal(masked[cell], np.zeros((8, 16, 3)) if patch in hidden else np.asarray(picture)[cell])
