"""Test the views of images against the processors of transformers.

In an image whose red grows from left to right and whose green grows from top to bottom, the colour of a processed
pixel is its position in the image.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qkedit.plugins.core.grid import Grid
from qkedit.plugins.dscr.depth_grid import Region, area_average
from qkedit.plugins.dscr.depth_views import View, arrangement, as_picture, depth_on_grid, region_of_view, views

TOLERANCE = 0.02  # of the image: resampling and 256 levels


def coordinates(height: int, width: int) -> Image.Image:
    down = torch.linspace(0, 255, height)[:, None].expand(height, width)
    across = torch.linspace(0, 255, width)[None].expand(height, width)
    pixels = torch.stack([across, down, torch.full((height, width), 255.0)], dim=-1)
    return Image.fromarray(pixels.round().byte().numpy())


def processor(name: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**settings)


def seen_at(pixels: torch.Tensor, image_processor: Any, rows: int, columns: int) -> torch.Tensor:
    """Return the position in the image of the centre of each cell of processed pixels: `[2, rows, columns]`."""
    mean, deviation = (
        torch.tensor(value)[:, None, None] for value in (image_processor.image_mean, image_processor.image_std)
    )
    picture = (pixels.float() * deviation + mean) / (255 * image_processor.rescale_factor)
    cells = torch.nn.functional.adaptive_avg_pool2d(picture, (rows, columns))
    return torch.stack([cells[1], cells[0]])


def expected_at(region: Region, rows: int, columns: int) -> torch.Tensor:
    """Return the positions of the centres by the region."""
    down = region.top + (region.bottom - region.top) * (torch.arange(rows) + 0.5) / rows
    across = region.left + (region.right - region.left) * (torch.arange(columns) + 0.5) / columns
    return torch.stack([down[:, None].expand(rows, columns), across[None].expand(rows, columns)])


def compare(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare the cells that lie entirely in the image."""
    half = torch.stack([(expected[0, 1] - expected[0, 0])[:1], (expected[1, :, 1] - expected[1, :, 0])[:1]])[
        :, :, None
    ]
    inside = ((expected - half / 2 > -1e-6) & (expected + half / 2 < 1 + 1e-6)).all(0)
    assert inside.sum() >= 6
    assert (actual - expected)[:, inside].abs().max() < TOLERANCE


@pytest.mark.parametrize("size", [(120, 200), (201, 90), (96, 96)])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 60}, "crop_size": {"height": 48, "width": 48}}),
        (
            "LlavaImageProcessorPil",
            {"do_pad": True, "size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}},
        ),
        ("ChameleonImageProcessorPil", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        ("DeepseekVLImageProcessorPil", {"size": {"height": 96, "width": 96}, "min_size": 4}),
        ("SiglipImageProcessorPil", {"size": {"height": 48, "width": 48}}),
    ],
)
def test_cropped_and_padded_views_equal_the_processor(
    name: str, settings: dict[str, Any], size: tuple[int, int]
) -> None:
    image_processor = processor(name, **settings)
    pixels = image_processor(images=[coordinates(*size)], return_tensors="pt")["pixel_values"]
    actual = seen_at(pixels[0], image_processor, 6, 6)
    compare(actual, expected_at(region_of_view(image_processor, *size), 6, 6))


@pytest.mark.parametrize("size", [(40, 90), (80, 70), (96, 48), (33, 200)])
def test_tiles_of_llava_next_equal_the_processor(size: tuple[int, int]) -> None:
    """Join and crop the features of tiles by the model's own code; the features encode positions."""
    from tests.plugins.tiny_requests import model

    config = model("llava-next").config
    image_processor = processor(
        "LlavaNextImageProcessorPil",
        size={"shortest_edge": 48},
        crop_size={"height": 48, "width": 48},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )
    inputs = image_processor(images=[coordinates(*size)], return_tensors="pt")
    pixels = inputs["pixel_values"][0]
    features = torch.stack([seen_at(tile, image_processor, 6, 6).flatten(1).T for tile in pixels])
    (packed,), _ = model("llava-next").model.pack_image_features(
        [features],
        inputs["image_sizes"],
        vision_feature_select_strategy="default",
        image_newline=torch.full((2,), 9.0),
    )
    fine = packed[36:]
    columns = int((fine[:, 0] == 9).nonzero()[0])
    actual = fine.unflatten(0, (-1, columns + 1))[:, :columns].permute(2, 0, 1)
    rows = actual.shape[1]
    grid = Grid(0, 0, "fine", None, torch.zeros(rows, columns, dtype=torch.long))
    base = Grid(0, 0, "base", 0, torch.zeros(6, 6, dtype=torch.long))
    (view,) = views(config, inputs, [base, grid])
    compare(actual, expected_at(view.fine, rows, columns))
    compare(seen_at(pixels[0], image_processor, 6, 6), expected_at(Region(), 6, 6))


@pytest.mark.parametrize("size", [(64, 96), (60, 130), (37, 61)])
def test_patches_of_qwen_vl_equal_the_processor(size: tuple[int, int]) -> None:
    image_processor = processor(
        "Qwen2VLImageProcessorPil",
        patch_size=8,
        merge_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 96 * 96},
    )
    image = coordinates(*size)
    inputs = image_processor(images=[image, coordinates(48, 48)], return_tensors="pt")
    _, height, width = inputs["image_grid_thw"][0].tolist()
    config = SimpleNamespace(vision_config=SimpleNamespace(patch_size=8, spatial_merge_size=2))
    grids = [Grid(0, number, "image", 0, torch.zeros(1, 1, dtype=torch.long)) for number in range(2)]
    view, other = views(config, inputs, grids)
    assert view.pixels.shape == (3, 8 * height, 8 * width)
    assert other.pixels.shape == (3, 48, 48)
    compare(
        seen_at(view.pixels, image_processor, height // 2, width // 2), expected_at(Region(), height // 2, width // 2)
    )
    # The pixels equal those of the image that the processor cut into patches.
    resized = torch.from_numpy(
        __import__("numpy").array(image.resize((8 * width, 8 * height), Image.Resampling.BICUBIC))
    )
    picture = torch.from_numpy(np.array(as_picture(view, image_processor)))
    assert (picture.int() - resized.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(48, 144), (144, 50), (100, 100), (60, 90)])
def test_tiles_and_thumbnail_of_internvl_equal_the_processor(size: tuple[int, int]) -> None:
    image_processor = processor(
        "GotOcr2ImageProcessorPil",
        size={"height": 48, "width": 48},
        crop_to_patches=True,
        min_patches=1,
        max_patches=6,
    )
    pixels = image_processor(images=[coordinates(*size)], return_tensors="pt")["pixel_values"]
    count = len(pixels)
    kinds = ["image"] if count == 1 else ["tile"] * (count - 1) + ["thumbnail"]
    cells = torch.zeros(4, 4, dtype=torch.long)
    grids = [Grid(0, 0, kind, number, cells) for number, kind in enumerate(kinds)]
    config = SimpleNamespace(model_type="internvl")
    (view,) = views(config, {"pixel_values": pixels}, grids)
    down, across = (torch.linspace(0, 1, steps) for steps in size)
    for grid in grids:
        actual = seen_at(pixels[grid.tile], image_processor, 4, 4)
        for axis, depth in enumerate((down[:, None].expand(size), across[None].expand(size))):
            expected = depth_on_grid(depth, grid, view)
            assert (actual[axis] - expected).abs().max() < 2 * TOLERANCE


@pytest.mark.parametrize("size", [(48, 144), (144, 100), (40, 40)])
def test_tiles_of_smolvlm_equal_the_processor(size: tuple[int, int]) -> None:
    image_processor = processor(
        "Idefics3ImageProcessorPil",
        size={"longest_edge": 96},
        max_image_size={"longest_edge": 48},
        do_image_splitting=True,
    )
    inputs = image_processor(images=[[coordinates(*size)], [coordinates(96, 96)]], return_tensors="pt")
    pixels = inputs["pixel_values"]
    counts = [int(own.flatten(1).any(1).sum()) for own in pixels]
    cells = torch.zeros(4, 4, dtype=torch.long)
    grids = [
        Grid(row, row, "thumbnail" if number == count - 1 else "tile", number, cells)
        for row, count in enumerate(counts)
        for number in range(count)
    ]
    found = views(SimpleNamespace(model_type="idefics3"), inputs, grids)
    down, across = (torch.linspace(0, 1, steps) for steps in size)
    for grid in grids[: counts[0]]:
        assert grid.tile is not None
        actual = seen_at(pixels[0, grid.tile], image_processor, 4, 4)
        for axis, depth in enumerate((down[:, None].expand(size), across[None].expand(size))):
            assert (actual[axis] - depth_on_grid(depth, grid, found[0])).abs().max() < 2 * TOLERANCE


def test_missing_tiles_of_idefics_3_are_ignored() -> None:
    """Idefics 3 passes zeros if a prompt has fewer tiles than another."""
    pixels = torch.randn(2, 2, 3, 8, 8)
    pixels[1, 1] = 0
    grids = [Grid(int(number > 1), number, "image", 0, torch.zeros(2, 2, dtype=torch.long)) for number in range(3)]
    found = views(SimpleNamespace(model_type="smolvlm"), {"pixel_values": pixels}, grids)
    assert [view.tiles for view in found] == [(1, 1)] * 3
    assert torch.equal(torch.stack([view.pixels for view in found]), pixels.flatten(0, 1)[:3])


def test_padding_to_the_largest_image_of_a_batch_is_removed() -> None:
    pixels = torch.randn(2, 3, 32, 48)
    inputs = {"pixel_values": pixels, "image_sizes": torch.tensor([[32, 16], [16, 48]])}
    grids = [Grid(0, number, "image", 0, torch.zeros(1, 1, dtype=torch.long)) for number in range(2)]
    first, second = views(SimpleNamespace(model_type="mistral3"), inputs, grids)
    assert torch.equal(first.pixels, pixels[0, :, :32, :16])
    assert torch.equal(second.pixels, pixels[1, :, :16, :48])


@pytest.mark.parametrize("tiles", [(1, 6), (2, 3), (3, 2), (6, 1), (1, 1), (5, 1)])
def test_the_arrangement_of_tiles_is_found_from_the_thumbnail(tiles: tuple[int, int]) -> None:
    rows, columns = tiles
    torch.manual_seed(0)
    picture = area_average(torch.rand(9, 9), 16 * rows, 16 * columns).expand(3, -1, -1)
    cut = [
        picture[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        for row in range(rows)
        for column in range(columns)
    ]
    thumbnail = torch.nn.functional.interpolate(picture[None], (16, 16), mode="bilinear", antialias=True)[0]
    assert arrangement(torch.stack(cut), thumbnail) == tiles


def test_normalisation_is_undone() -> None:
    torch.manual_seed(0)
    levels = torch.randint(0, 256, (3, 5, 7))
    mean, deviation = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    pixels = (levels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    known = SimpleNamespace(image_mean=list(mean), image_std=list(deviation), rescale_factor=1 / 255)
    picture = as_picture(View(pixels), known)
    assert picture.size == (7, 5)
    assert [list(picture.getpixel((3, 2)))] == [levels[:, 2, 3].tolist()]
