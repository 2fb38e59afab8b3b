"""The part of an image that each of its grids shows, so that a depth map can be resampled to them.

A `View` is one picture of a whole image after its processor: resized, cropped or padded, and reassembled from patches
if the model uses patches. Every grid of the image shows its view, as a whole or (a tile) in part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qkedit.errors import QkeditError
from qkedit.plugins.core.grid import Grid
from qkedit.plugins.dscr.depth_grid import WHOLE, Region, area_average

if TYPE_CHECKING:
    from PIL.Image import Image

# Families whose published processors show the model less or more than the image: a centre crop or a square pad.
CROPPED_OR_PADDED = ("llava", "vipllava", "chameleon", "deepseek_vl")


@dataclass(frozen=True)
class View:
    """One image as the model sees it.

    Attributes:
        pixels: `[3, height, width]`, normalised as the model expects them.
        tiles: the rows and columns of its tiles; (1, 1) without tiles.
        fine: the part of the image that its grid of kind "fine" covers.
    """

    pixels: Tensor
    tiles: tuple[int, int] = (1, 1)
    fine: Region = WHOLE


def views(config: Any, inputs: Mapping[str, Any], grids: Sequence[Grid]) -> list[View]:
    """Return the view of every image of a request, in order.

    Args:
        config: the config of the whole model.
        inputs: the inputs of the image encoder, by argument name.
        grids: the grids of all images; beams and other repetitions of a prompt may list an image several times.
    """
    pixels, sizes = torch.as_tensor(inputs["pixel_values"]), inputs.get("image_sizes")
    if inputs.get("image_grid_thw") is not None:
        return [View(picture) for picture in _from_patches(config, pixels, inputs["image_grid_thw"])]
    if sizes is None:
        tiles: dict[int, set[int | None]] = {}
        for grid in grids:
            tiles.setdefault(grid.image, set()).add(grid.tile)
        return _from_tiles(pixels, [len(tiles[image]) for image in range(len(tiles))])
    if pixels.ndim == 5:  # LLaVA-NeXT, LLaVA-OneVision: the first tile is the whole image
        return [
            View(own[0], fine=_fine_region(config, height, width))
            for own, (height, width) in zip(pixels, torch.as_tensor(sizes).tolist(), strict=True)
        ]
    # Pixtral, Mistral 3: padded to the largest image of the batch
    return [
        View(own[:, :height, :width])
        for own, (height, width) in zip(pixels, torch.as_tensor(sizes).tolist(), strict=True)
    ]


def _from_patches(config: Any, pixels: Tensor, sizes: Any) -> list[Tensor]:
    """Reassemble pictures from the patches of the Qwen-VL line, which are in blocks of merge × merge."""
    vision = config.vision_config
    patch, merge = vision.patch_size, vision.spatial_merge_size
    pictures = []
    start = 0
    for frames, height, width in torch.as_tensor(sizes).tolist():
        for _ in range(frames):
            blocks = pixels[start : start + height * width].reshape(
                height // merge, width // merge, merge, merge, 3, -1, patch, patch
            )
            start += height * width
            # A still image is in every frame of a temporal patch.
            picture = blocks[:, :, :, :, :, 0].permute(4, 0, 2, 5, 1, 3, 6)
            pictures.append(picture.reshape(3, height * patch, width * patch))
    return pictures


def _from_tiles(pixels: Tensor, counts: Sequence[int]) -> list[View]:
    """Return each image's last tile as its view: the thumbnail, or the only tile.

    Args:
        pixels: `[tiles, 3, side, side]`, or `[batch, tiles, 3, side, side]` padded with zeros.
        counts: the number of tiles of each image, including the thumbnail.
    """
    if pixels.ndim == 5:
        pixels = pixels.flatten(0, 1)
        pixels = pixels[pixels.flatten(1).any(1)]
    return [
        View(own[-1], arrangement(own[:-1], own[-1]) if len(own) > 1 else (1, 1)) for own in pixels.split(list(counts))
    ]


def arrangement(tiles: Tensor, thumbnail: Tensor) -> tuple[int, int]:
    """Return the number of rows and columns of the tiles: the arrangement most similar to the thumbnail.

    Processors do not return the arrangement. A picture that looks the same in several arrangements is flat, and so is
    its depth.

    Args:
        tiles: `[tiles, 3, side, side]`, row by row.
        thumbnail: `[3, side, side]`, the whole image.
    """
    count, _, side, _ = tiles.shape
    small = min(side, 64)
    shrunk = torch.nn.functional.interpolate(thumbnail[None].float(), (small, small), mode="area")

    def difference(rows: int) -> float:
        picture = tiles.float().unflatten(0, (rows, count // rows)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
        return float(
            (torch.nn.functional.interpolate(picture[None], (small, small), mode="area") - shrunk).square().mean()
        )

    rows = min((rows for rows in range(1, count + 1) if count % rows == 0), key=difference)
    return rows, count // rows


def _fine_region(config: Any, height: int, width: int) -> Region:
    """Return the part of an image that LLaVA-NeXT's tiles show without their padding, in whole cells."""
    from transformers.image_processing_utils import select_best_resolution

    vision = config.vision_config
    canvas_height, canvas_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = (
        canvas // vision.image_size * (vision.image_size // vision.patch_size)
        for canvas in (canvas_height, canvas_width)
    )
    # Rounded as in its processor and its modules.
    if canvas_width / width < canvas_height / height:
        shown_height, shown_width = min(math.ceil(height * canvas_width / width), canvas_height), canvas_width
    else:
        shown_height, shown_width = canvas_height, min(math.ceil(width * canvas_height / height), canvas_width)
    cut_rows = cut_columns = 0
    if width / height > columns / rows:
        cut_rows = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        cut_columns = (columns - int(round(width * (rows / height), 7))) // 2
    top, left = (canvas_height - shown_height) // 2, (canvas_width - shown_width) // 2
    cell_height, cell_width = canvas_height / rows, canvas_width / columns
    return Region(
        (cut_rows * cell_height - top) / shown_height,
        (cut_columns * cell_width - left) / shown_width,
        ((rows - cut_rows) * cell_height - top) / shown_height,
        ((columns - cut_columns) * cell_width - left) / shown_width,
    )


def as_picture(view: View, image_processor: Any) -> Image:
    """Return a view as the picture before normalisation."""
    from PIL import Image

    pixels = view.pixels.detach().float().cpu()
    if getattr(image_processor, "do_normalize", True):
        mean, deviation = (
            torch.tensor(value if isinstance(value, list | tuple) else [value] * 3)[:, None, None]
            for value in (image_processor.image_mean, image_processor.image_std)
        )
        pixels = pixels * deviation + mean
    levels = pixels / image_processor.rescale_factor if getattr(image_processor, "do_rescale", True) else pixels
    return Image.fromarray(levels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def region_of_view(image_processor: Any, height: int, width: int) -> Region:
    """Return the part of an image of this size that its view shows: a centre crop, a square around it, or all."""
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        return Region(-top / height, -left / width, (side - top) / height, (side - left) / width)
    if not getattr(image_processor, "do_center_crop", False):
        return WHOLE
    resized_height, resized_width = _resized(image_processor, height, width)
    crop_height, crop_width = image_processor.crop_size["height"], image_processor.crop_size["width"]
    top, left = (resized_height - crop_height) // 2, (resized_width - crop_width) // 2
    return Region(
        top / resized_height,
        left / resized_width,
        (top + crop_height) / resized_height,
        (left + crop_width) / resized_width,
    )


def _resized(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    size = image_processor.size
    if not image_processor.do_resize:
        return height, width
    if size.get("shortest_edge"):
        short, long = sorted((height, width))
        longer = int(size["shortest_edge"] * long / short)
        return (size["shortest_edge"], longer) if height <= width else (longer, size["shortest_edge"])
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    raise QkeditError(
        f"it is unknown how the processor resizes images to {dict(size)}",
        where="depth",
        remedy="use a depth model instead of a depth map",
    )


def depth_on_grid(depth: Tensor, grid: Grid, view: View, region: Region = WHOLE) -> Tensor:
    """Return the mean depth of each cell of a grid, float32 `[rows, columns]`.

    Args:
        depth: the depth of every pixel of an image, `[height, width]`.
        grid: a grid of the image.
        view: the view of the image.
        region: the part of the image that the view shows.
    """
    rows, columns = grid.shape
    if grid.kind == "fine":
        return area_average(depth, rows, columns, view.fine)
    if grid.kind != "tile" or grid.tile is None:
        return area_average(depth, rows, columns, region)
    down, across = view.tiles
    row, column = divmod(grid.tile, across)
    whole = area_average(depth, rows * down, columns * across, region)
    return whole[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
