"""Test that single images, as vLLM has them, are joined like by the processor of each family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qkedit.integrations.vllm.families import ARCHITECTURES, image_inputs
from qkedit.plugins.core.grid import image_grids
from qkedit.plugins.core.grid_layouts import LAYOUTS
from qkedit.plugins.dscr.depth_views import views
from tests.plugins import tiny_requests
from tests.plugins.tiny_requests import TILES, Request, two_prompts

# The tiny model of each family by `model_type`.
TINY = {
    "qwen2_vl": "qwen2-vl",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "llava": "llava",
    "llava_next": "llava-next",
    "llava_onevision": "llava-onevision",
    "internvl": "internvl",
    "idefics3": "idefics3",
    "mistral3": "mistral3",
}


def test_every_family_has_a_layout_and_a_test() -> None:
    assert set(ARCHITECTURES) == set(TINY)
    assert set(ARCHITECTURES) <= set(LAYOUTS)


def one_by_one(family: str, given: Request) -> list[dict[str, Any]]:
    """Return the images of a request as vLLM's fields split them."""
    inputs, config = given.inputs, tiny_requests.model(family).config
    pixels = inputs["pixel_values"]
    if family in tiny_requests.PATCHES:
        counts = inputs["image_grid_thw"].prod(-1).tolist()
        return [
            {"pixel_values": own, "image_grid_thw": size}
            for own, size in zip(pixels.split(counts), inputs["image_grid_thw"], strict=True)
        ]
    if family in TILES:
        tiles = pixels.flatten(0, 1) if pixels.ndim == 5 else pixels
        tiles = tiles[tiles.flatten(1).any(-1)]
        grids = image_grids(config, given.ids, inputs).grids
        images = [grid.image for grid in grids]
        return [{"pixel_values": own} for own in tiles.split([images.count(image) for image in sorted(set(images))])]
    if "image_sizes" not in inputs:
        return [{"pixel_values": own} for own in pixels]
    sizes = inputs["image_sizes"]
    if pixels.ndim == 5:
        return [
            {"pixel_values": own[own.flatten(1).any(-1)], "image_sizes": size}
            for own, size in zip(pixels, sizes, strict=True)
        ]
    return [{"pixel_values": own[:, :h, :w]} for own, (h, w) in zip(pixels, sizes.tolist(), strict=True)]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_grids_and_views_of_joined_images_equal_those_of_the_processor(model_type: str) -> None:
    family = TINY[model_type]
    given = tiny_requests.request(family, two_prompts(family))
    config = tiny_requests.model(family).config
    joined = image_inputs(model_type, one_by_one(family, given))
    wanted, found = (image_grids(config, given.ids, inputs) for inputs in (given.inputs, joined))
    assert found.extents == wanted.extents
    assert [(grid.kind, grid.tile, grid.positions.tolist()) for grid in found.grids] == [
        (grid.kind, grid.tile, grid.positions.tolist()) for grid in wanted.grids
    ]
    pairs = zip(views(config, joined, found.grids), views(config, given.inputs, wanted.grids), strict=True)
    for view, other in pairs:
        assert torch.equal(view.pixels, other.pixels)
        assert (view.tiles, view.fine) == (other.tiles, other.fine)


def test_images_of_different_sizes_are_padded_with_zeros() -> None:
    small, large = torch.rand(3, 4, 8), torch.rand(3, 8, 4)
    joined = image_inputs("mistral3", [{"pixel_values": small}, {"pixel_values": large}])
    assert joined["image_sizes"].tolist() == [[4, 8], [8, 4]]
    padded: Tensor = joined["pixel_values"]
    assert padded.shape == (2, 3, 8, 8)
    assert torch.equal(padded[0, :, :4], small)
    assert torch.equal(padded[1, :, :, :4], large)
    assert not padded[0, :, 4:].any()
    assert not padded[1, :, :, 4:].any()
