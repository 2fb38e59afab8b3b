"""The layout of an image's tokens in each model family: its rectangles of cells and the tokens that are not cells.

A layout is a function from the encoded images to one `ImageLayout` per image; a family is one entry of `LAYOUTS`. All
numbers are computed in the same way as in the family's modules of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkedit.errors import QkeditError, UnsupportedForm


class GridMismatch(QkeditError):
    """The image tokens of the prompt do not add up to the grids of its images."""


@dataclass(frozen=True)
class Part:
    """One rectangle of cells within the placeholders of one image.

    Attributes:
        kind: "image" (the whole image), "base" (the same, coarse), "fine" (the same, fine), "tile", "thumbnail".
        tile: the number of the image's tile in `pixel_values`; None if the rectangle spans several tiles ("fine").
        offsets: `[rows, columns]` int64, the position of each cell among the image's placeholders.
    """

    kind: str
    tile: int | None
    offsets: Tensor


@dataclass(frozen=True)
class ImageLayout:
    """The placeholders of one image: `tokens` in number, some of which are cells of `parts`."""

    tokens: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Run:
    """A run of `length` adjacent placeholders, beginning at column `first` of prompt `row`."""

    row: int
    first: int
    length: int
    label: int  # the token before them, −1 at the start of a prompt


@dataclass(frozen=True)
class EncodedImages:
    """The input of a layout: the model's config, the inputs of its image encoder, and the prompts."""

    config: Any
    inputs: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def tokens(self) -> int:
        """The number of placeholders in the prompts."""
        return sum(run.length for run in self.runs)

    def tensor(self, name: str) -> Tensor:
        """Return the encoder's input `name`. Raises GridMismatch if it was not given."""
        value = self.inputs.get(name)
        if value is None:
            raise GridMismatch(
                f"{name} was not passed with the images",
                where=str(self.config.model_type),
                remedy="pass everything the model's processor returns",
            )
        return torch.as_tensor(value)


LayoutFunction = Callable[[EncodedImages], list[ImageLayout]]


def layout_of(config: Any) -> LayoutFunction:
    """Return the layout of a model's images. Raises UnsupportedForm if it is not a known grid."""
    model_type = str(config.model_type)
    if model_type in NO_GRID:
        raise no_grid(model_type, NO_GRID[model_type])
    if model_type == "llava" and getattr(config.vision_config, "model_type", "") == "pixtral":
        # Pixtral is published as a LLaVA with another image encoder.
        return _rows_of_any_length
    if model_type not in LAYOUTS:
        raise UnsupportedForm(
            "the position of its image tokens in the image is unknown",
            where=f"model type {model_type}",
            remedy="run it without plug-ins, or add its layout to qkedit/plugins/core/grid_layouts.py",
        )
    return LAYOUTS[model_type]


def image_token(config: Any) -> int:
    """Return the id of the placeholder of an image token in a prompt."""
    return int(config.image_token_id)


def _whole(rows: int, columns: int) -> ImageLayout:
    return ImageLayout(rows * columns, (Part("image", 0, _cells(0, rows, columns)),))


def _cells(first: int, rows: int, columns: int, stride: int | None = None) -> Tensor:
    """Return the offsets of a rectangle whose rows begin `stride` tokens apart (by default without a gap)."""
    starts = first + torch.arange(rows) * (columns if stride is None else stride)
    return starts[:, None] + torch.arange(columns)


def _side(tokens: int, what: str) -> int:
    side = math.isqrt(tokens)
    if tokens == 0 or side * side != tokens:
        raise GridMismatch(
            f"{tokens} image tokens {what} are not a square number",
            where="image tokens",
            remedy="give the model what its own processor returns for these prompts and images",
        )
    return side


def _square(images: EncodedImages) -> list[ImageLayout]:
    """Lay out images that all have the same number of tokens, which is a square number."""
    count = images.tensor("pixel_values").shape[0]
    tokens, rest = divmod(images.tokens, count)
    if rest:
        raise GridMismatch(
            f"{images.tokens} image tokens cannot be divided evenly among {count} images",
            where="image tokens",
            remedy="give the model what its own processor returns for these prompts and images",
        )
    side = _side(tokens, "an image")
    return [_whole(side, side)] * count


def _patches(images: EncodedImages) -> list[ImageLayout]:
    """Lay out the rows and columns of patches in `image_grid_thw`, merged `spatial_merge_size` at a time."""
    merge = images.config.vision_config.spatial_merge_size
    return [
        _whole(height // merge, width // merge)
        for frames, height, width in images.tensor("image_grid_thw").tolist()
        for _ in range(frames)
    ]


def _rows_of_any_length(images: EncodedImages) -> list[ImageLayout]:
    """Lay out rows of patches, each ended by a token that is not a placeholder (Pixtral, Mistral 3)."""
    patch = images.config.vision_config.patch_size * getattr(images.config, "spatial_merge_size", 1)
    return [_whole(height // patch, width // patch) for height, width in images.tensor("image_sizes").tolist()]


def _tiles(images: EncodedImages) -> list[ImageLayout]:
    """Lay out tiles row by row, then a thumbnail if there are several tiles, between markers (InternVL)."""
    tiles = images.tensor("pixel_values").shape[0]
    side = _tile_side(images, tiles)
    return [_tiled(run.length // side**2, side, last="thumbnail") for run in _whole_tiles(images.runs, side)]


def _labelled_tiles(images: EncodedImages) -> list[ImageLayout]:
    """Lay out tiles after labels with their positions, and the thumbnail last, after its label (Idefics 3, SmolVLM).

    All-zero tiles are padding of the batch, and have no tokens.
    """
    pixels = images.tensor("pixel_values")
    tiles = int(pixels.flatten(2).any(dim=-1).sum())
    side = _tile_side(images, tiles)
    runs = list(_whole_tiles(images.runs, side))
    layouts: list[ImageLayout] = []
    count = 0
    for run in runs:
        count += 1
        # The last tile of a prompt is a thumbnail, so its label is that of thumbnails.
        if run.label == runs[-1].label:
            layouts.append(_tiled(count, side, last="thumbnail"))
            count = 0
    return layouts


def _tile_side(images: EncodedImages, tiles: int) -> int:
    tokens, rest = divmod(images.tokens, tiles) if tiles else (0, 0)
    if rest:
        raise GridMismatch(
            f"{images.tokens} image tokens cannot be divided evenly among {tiles} tiles",
            where="image tokens",
            remedy="give the model what its own processor returns for these prompts and images",
        )
    return _side(tokens, "a tile")


def _whole_tiles(runs: Iterable[Run], side: int) -> Iterable[Run]:
    for run in runs:
        if run.length % side**2:
            raise GridMismatch(
                f"{run.length} image tokens in a row are not a multiple of a tile's {side**2}",
                where="image tokens",
                remedy="give the model what its own processor returns for these prompts and images",
            )
        yield run


def _tiled(count: int, side: int, last: str) -> ImageLayout:
    """Return `count` squares in a row: a single one is the image itself, and the last of several is a `last`."""
    kinds = ["image"] if count == 1 else ["tile"] * (count - 1) + [last]
    return ImageLayout(
        count * side**2,
        tuple(Part(kind, tile, _cells(tile * side**2, side, side)) for tile, kind in enumerate(kinds)),
    )


def _any_resolution(images: EncodedImages) -> list[ImageLayout]:
    """Lay out a base grid, then the joined tiles, cropped to the image, with a newline per row.

    LLaVA-NeXT and LLaVA-OneVision have it. An image that is not tiled (one of several in a LLaVA-OneVision prompt) is
    its base grid and one newline.
    """
    config = images.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    sizes = images.tensor("image_sizes").tolist()
    per_prompt = images.inputs.get("batch_num_images")
    tiled = [True] * len(sizes) if per_prompt is None else [n == 1 for n in map(int, per_prompt) for _ in range(n)]
    base = Part("base", 0, _cells(0, side, side))
    layouts = []
    for (height, width), is_tiled in zip(sizes, tiled, strict=True):
        if not is_tiled:
            layouts.append(ImageLayout(side**2 + 1, (base,)))
            continue
        rows, columns = _unpadded(config, side, height, width, images.inputs.get("vision_aspect_ratio"))
        fine = Part("fine", None, _cells(side**2, rows, columns, stride=columns + 1))
        layouts.append(ImageLayout(side**2 + rows * (columns + 1), (base, fine)))
    return layouts


def _unpadded(config: Any, side: int, height: int, width: int, aspect_ratio: str | None) -> tuple[int, int]:
    """Return the number of rows and columns of the tiles' cells that show the image without padding."""
    from transformers.image_processing_utils import select_best_resolution

    # Computed and rounded as in the modules.
    best_height, best_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows = best_height // config.vision_config.image_size * side
    columns = best_width // config.vision_config.image_size * side
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * (columns / width), 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * (rows / height), 7))) // 2)
    ratio_name = aspect_ratio or getattr(config, "vision_aspect_ratio", None)
    if ratio_name is not None:
        # LLaVA-OneVision scales down images of more than this many tiles.
        most = int(ratio_name.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows, columns


LAYOUTS: dict[str, LayoutFunction] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), _patches),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm_ocr"), _patches),
    **dict.fromkeys(("llava", "vipllava", "gemma3", "paligemma", "chameleon", "deepseek_vl"), _square),
    **dict.fromkeys(("llava_next", "llava_onevision"), _any_resolution),
    "internvl": _tiles,
    "mistral3": _rows_of_any_length,
    **dict.fromkeys(("idefics3", "smolvlm"), _labelled_tiles),
}

NO_GRID: dict[str, str] = {
    "mllama": "images are in cross-attention layers, not among the prompt's tokens",
    "idefics2": "a resampler gathers the whole image into a fixed number of tokens",
    "instructblip": "a query transformer gathers the whole image into a fixed number of tokens",
    "blip-2": "a query transformer gathers the whole image into a fixed number of tokens",
}


def no_grid(model_type: str, reason: str) -> UnsupportedForm:
    """Return the error for a model whose image tokens have no position in the image."""
    return UnsupportedForm(
        f"its image tokens do not form a grid: {reason}",
        where=f"model type {model_type}",
        remedy="use a model whose image tokens are patches of the image; `qkedit steer` can still edit this one",
    )
