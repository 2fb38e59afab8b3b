"""Run the Python of docs/rivals.md on second images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qkedit.demo import SMALL_DEMO
from qkedit.plugins.core.pictures import pictures_of
from qkedit.runtime.generation import load, prompt_text

DOCUMENT = Path(__file__).parents[3] / "docs" / "rivals.md"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the names that the document's Python defines, run in a directory with its image."""
    section = DOCUMENT.read_text("utf-8").split("## Provide second images\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {"__name__": "rivals"}
    place = tmp_path_factory.mktemp("document")
    Image.effect_noise((60, 40), 80).convert("RGB").save(place / "street.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for block in blocks[:-1]:
            exec(compile(block, str(DOCUMENT), "exec", dont_inherit=True), names)
    loaded = load(SMALL_DEMO, device="cpu")
    names |= {"processor": loaded.processor, "texts": [prompt_text(loaded, "describe", 1)]}
    names |= {"inputs": {"input_ids": torch.tensor([[1]])}, "picture": names["Image"].new("RGB", (8, 8))}
    exec(compile(blocks[-1], str(DOCUMENT), "exec", dont_inherit=True), names)
    return names


def test_the_python_of_the_document_runs(written: dict[str, Any]) -> None:
    assert written["answer"].report.plugins["image-contrast"].steps == written["answer"].tokens
    plugin = written["MaskedCentre"]()
    assert plugin.name == "masked-centre"
    second = plugin.provider(Image.new("RGB", (8, 8), "white"))
    assert (second.getpixel((4, 4)), second.getpixel((0, 0))) == ((0, 0, 0), (255, 255, 255))
    stored = pictures_of(written["inputs"])
    assert stored is not None
    larger = stored.inputs_with([[Image.new("RGB", (100, 30))]])
    assert {"input_ids", "pixel_values"} <= larger.keys()
    assert stored.questions == ["describe"]
