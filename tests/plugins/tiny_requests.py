"""Build prompts with images for tiny models of every family, like the families' processors.

Each cell is recorded with its image, part, row and column, for comparisons with the grids.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests import tiny_models
from tests.tiny_configs import FAMILIES

IMAGE, PAD, NEWLINE = 5, 0, 12
START, END = 3, 4  # around an image, in families with such tokens

# Changes to the tiny configs for larger grids: 6 × 6 cells per image or tile, 5 × 5 if cells are merged.
LARGER: dict[str, dict[str, Any]] = {
    "llava": {"vision_config": {"image_size": 48}},
    "vipllava": {"vision_config": {"image_size": 48}},
    "deepseek-vl": {"vision_config": {"image_size": 48}},
    "gemma3": {"vision_config": {"image_size": 48}, "mm_tokens_per_image": 36},
    "paligemma": {"vision_config": {"image_size": 48}},
    # As published; the tiny config has the defaults of a LLaVA.
    "pixtral": {
        "vision_config": {"image_size": 64},
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
    },
    "mistral3": {"vision_config": {"image_size": 128}, "spatial_merge_size": 2},
    "llava-next": {"vision_config": {"image_size": 48}, "image_grid_pinpoints": [[48, 96], [96, 48], [96, 96]]},
    "llava-onevision": {"vision_config": {"image_size": 48}, "image_grid_pinpoints": [[48, 96], [96, 48], [96, 96]]},
    "internvl": {"vision_config": {"image_size": [40, 40]}, "image_seq_length": 25},
    "idefics3": {"vision_config": {"image_size": 40}},
    "smolvlm": {"vision_config": {"image_size": 40}},
}

PATCHES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe", "qwen3.5", "glm4v", "glm-ocr")
SQUARES = {"llava": 6, "vipllava": 6, "deepseek-vl": 6, "gemma3": 6, "paligemma": 6, "chameleon": 8}
ROWS = {"pixtral": 8, "mistral3": 16}
ANY_RESOLUTION = ("llava-next", "llava-onevision")
TILES = ("internvl", "idefics3", "smolvlm")
ALL = (*PATCHES, *SQUARES, *ROWS, *ANY_RESOLUTION, *TILES)

# Families with the decoder and image layout of another one: Qwen2-VL or LLaVA-NeXT.
SAME_PATHS = ("qwen2.5-vl", "internvl")


def distinct(*families: str) -> tuple[str, ...]:
    """Return the families without those of `SAME_PATHS`; all of them if SLOW_TESTS is set."""
    return families if os.environ.get("SLOW_TESTS") else tuple(name for name in families if name not in SAME_PATHS)


# Two images of different shapes for each image layout, in the units of `Prompt`.
SHAPES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    **dict.fromkeys(PATCHES, ((5, 6), (6, 4))),
    **dict.fromkeys(SQUARES, ((0, 0), (0, 0))),
    **dict.fromkeys(ROWS, ((5, 6), (6, 4))),
    **dict.fromkeys(ANY_RESOLUTION, ((40, 90), (80, 70))),
    **dict.fromkeys(TILES, ((1, 2), (1, 1))),
}

Cell = tuple[int, str, int, int]  # image of the request, part, row, column


@dataclass(frozen=True)
class Prompt:
    """Text tokens (a number) and images (a pair), in order.

    The unit of the pair depends on the family: cells, ignored (images of one size), pixels (LLaVA-NeXT) or tiles.
    """

    items: tuple[int | tuple[int, int], ...]
    seed: int = 0


@dataclass
class Request:
    """Inputs of a model, and for each prompt the column of each cell."""

    inputs: dict[str, Any]
    cells: list[dict[int, Cell]]

    @property
    def ids(self) -> Tensor:
        return self.inputs["input_ids"]


@dataclass
class _Tokens:
    ids: list[int] = field(default_factory=list)
    cells: dict[int, Cell] = field(default_factory=dict)

    def text(self, *ids: int) -> None:
        self.ids.extend(ids)

    def grid(self, image: int, part: str, rows: int, columns: int, row_ends: Sequence[int] = ()) -> None:
        for row in range(rows):
            for column in range(columns):
                self.cells[len(self.ids)] = (image, part, row, column)
                self.ids.append(IMAGE)
            if row_ends:
                self.ids.append(row_ends[min(row, len(row_ends) - 1)] if row < rows - 1 else row_ends[-1])


@functools.cache
def model(family: str, **text: Any) -> Any:
    """Return a shared tiny model in float32, which must not be changed; `text` overrides its decoder's settings."""
    from transformers import AutoConfig

    settings = deepcopy(FAMILIES[family])
    for name, value in LARGER.get(family, {}).items():
        settings[name] = {**settings[name], **value} if isinstance(value, dict) else value
    settings.get("text_config", settings).update({"max_position_embeddings": 1024, **text})
    return tiny_models.model(family, "float32", AutoConfig.for_model(**settings))


def request(family: str, prompts: Sequence[Prompt], padding: str = "left") -> Request:
    """Build a batch; the tokens and pixels of a prompt depend on its seed, not on other prompts."""
    rows: list[_Tokens] = []
    pictures: list[Any] = []  # (prompt, shape, generator)
    for number, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(prompt.seed)
        tokens = _Tokens()
        tokens.text(1)
        for item in prompt.items:
            if isinstance(item, int):
                tokens.text(*torch.randint(40, 120, (item,), generator=generator).tolist())
            else:
                _lay(family, tokens, len(pictures), item)
                pictures.append((number, item, generator))
        rows.append(tokens)
    length = max(len(row.ids) for row in rows)
    left = [length - len(row.ids) if padding == "left" else 0 for row in rows]
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, left[number] : left[number] + len(row.ids)] = torch.tensor(row.ids)
        mask[number, left[number] : left[number] + len(row.ids)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, **_pixels(family, pictures, len(rows))}
    if family in PATCHES:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    if family == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    if family == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(ids)
    cells = [{left[n] + column: cell for column, cell in row.cells.items()} for n, row in enumerate(rows)]
    return Request(inputs, cells)


def two_prompts(family: str) -> list[Prompt]:
    """Return prompts of different lengths and images; the second has two images if the family allows it."""
    first, second = SHAPES[family]
    several = (first, 2, second) if family != "paligemma" else (second,)
    if family == "llava-onevision":
        several = (second,)  # two images in a prompt are not tiled; another test covers them
    lead = 0 if family == "paligemma" else 2
    return [Prompt((lead, first, 4), seed=3), Prompt((lead, *several, 7), seed=4)]


def _lay(family: str, tokens: _Tokens, image: int, shape: tuple[int, int]) -> None:
    rows, columns = shape
    if family in PATCHES:
        tokens.text(START)
        tokens.grid(image, "image", rows, columns)
        tokens.text(END)
    elif family in SQUARES:
        tokens.text(START)
        tokens.grid(image, "image", SQUARES[family], SQUARES[family])
        tokens.text(END)
    elif family in ROWS:
        tokens.grid(image, "image", rows, columns, row_ends=(NEWLINE, END))
    elif family in ANY_RESOLUTION:
        _lay_any_resolution(family, tokens, image, shape)
    elif family == "internvl":
        tokens.text(START)
        count = rows * columns
        for tile in range(count):
            tokens.grid(image, f"tile {tile}" if count > 1 else "image", 5, 5)
        if count > 1:
            tokens.grid(image, "thumbnail", 5, 5)
        tokens.text(END)
    else:
        _lay_labelled(tokens, image, rows, columns)


def _lay_labelled(tokens: _Tokens, image: int, rows: int, columns: int) -> None:
    """Idefics 3: <fake> <row_i_col_j> cells …, a newline per row of tiles, then <fake> <global-img> cells <fake>."""
    fake, whole, first_label = 20, 21, 22
    if rows * columns > 1:
        for row in range(rows):
            for column in range(columns):
                tokens.text(fake, first_label + row * 4 + column)
                tokens.grid(image, f"tile {row * columns + column}", 5, 5)
            tokens.text(NEWLINE)
        tokens.text(NEWLINE)
    tokens.text(fake, whole)
    tokens.grid(image, "thumbnail" if rows * columns > 1 else "image", 5, 5)
    tokens.text(fake)


def _lay_any_resolution(family: str, tokens: _Tokens, image: int, shape: tuple[int, int]) -> None:
    """Arrange features that encode their positions by the model's own code, and return them; −1 is a newline."""
    base = model(family).model
    tiles = _tile_count(family, shape)
    size = base.config.vision_config.image_size // base.config.vision_config.patch_size
    features = torch.arange(tiles * size**2, dtype=torch.float32).view(tiles, size**2, 1)
    settings = {"vision_feature_select_strategy": "default"} if family == "llava-next" else {}
    newline = torch.tensor([-1.0])
    (packed,), _ = base.pack_image_features([features], torch.tensor([shape]), image_newline=newline, **settings)
    values = packed.flatten().tolist()
    for number in range(size**2):
        tokens.cells[len(tokens.ids)] = (image, "base", number // size, number % size)
        tokens.text(IMAGE)
    row = column = 0
    for value in values[size**2 :]:
        if value < 0:
            row, column = row + 1, 0
        else:
            tokens.cells[len(tokens.ids)] = (image, "fine", row, column)
            column += 1
        tokens.text(IMAGE)


def _tile_count(family: str, shape: tuple[int, int]) -> int:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    config = model(family).config
    return image_size_to_num_patches(torch.tensor(shape), config.image_grid_pinpoints, config.vision_config.image_size)


def _pixels(family: str, pictures: Sequence[Any], prompts: int) -> dict[str, Any]:
    def noise(generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if not pictures:
        return {}
    shapes = torch.tensor([shape for _, shape, _ in pictures])
    if family in PATCHES:
        patches = [noise(generator, 4 * rows * columns, 3 * 2 * 8 * 8) for _, (rows, columns), generator in pictures]
        thw = torch.cat([torch.ones(len(pictures), 1, dtype=torch.long), 2 * shapes], dim=1)
        return {"pixel_values": torch.cat(patches), "image_grid_thw": thw}
    if family in SQUARES:
        side = 16 if family == "chameleon" else 48
        return {"pixel_values": torch.stack([noise(generator, 3, side, side) for *_, generator in pictures])}
    if family in ROWS:
        sizes = shapes * ROWS[family]
        pixels = torch.zeros(len(pictures), 3, *sizes.max(dim=0).values.tolist())
        for number, (_, _, generator) in enumerate(pictures):
            height, width = sizes[number].tolist()
            pixels[number, :, :height, :width] = noise(generator, 3, height, width)
        return {"pixel_values": pixels, "image_sizes": sizes}
    if family in ANY_RESOLUTION:
        counts = [_tile_count(family, shape) for _, shape, _ in pictures]
        pixels = torch.zeros(len(pictures), max(counts), 3, 48, 48)
        for number, (_, _, generator) in enumerate(pictures):
            pixels[number, : counts[number]] = noise(generator, counts[number], 3, 48, 48)
        return {"pixel_values": pixels, "image_sizes": shapes}
    counts = [rows * columns + (rows * columns > 1) for _, (rows, columns), _ in pictures]
    tiles = [noise(generator, count, 3, 40, 40) for (_, _, generator), count in zip(pictures, counts, strict=True)]
    if family == "internvl":
        return {"pixel_values": torch.cat(tiles)}
    by_prompt = [
        torch.cat([own for own, (number, *_) in zip(tiles, pictures, strict=True) if number == prompt])
        for prompt in range(prompts)
    ]
    pixels = torch.zeros(prompts, max(map(len, by_prompt)), 3, 40, 40)
    for prompt, own in enumerate(by_prompt):
        pixels[prompt, : len(own)] = own
    return {"pixel_values": pixels}
