"""Requests of many families with depth for their images, for the plug-in and the slow reference."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch

from tests.plugins import tiny_requests
from tests.plugins.tiny_requests import ANY_RESOLUTION, TILES, Prompt, Request

FAMILIES = tuple(family for family in tiny_requests.ALL if family not in ("vipllava", "glm-ocr", "idefics3"))
TILED = (1, 2)  # rows and columns of tiles of the larger image
LAYERS = {"qwen3.5": [1, 3]}  # its other layers have linear attention
# Settings of a processor that does not crop images.
UNCROPPED = SimpleNamespace(do_center_crop=False)


def depth_maps(count: int) -> list[torch.Tensor]:
    """Return depth maps whose sides every grid divides, so that cells contain whole pixels."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(120, 120, generator=generator).cumsum(number % 2) for number in range(count)]


def images_in(request: Request) -> int:
    return len({cell[0] for row in request.cells for cell in row.values()})


def prompts_of(family: str) -> list[Prompt]:
    """Return two prompts of different lengths, the second with two images; LLaVA-NeXT's images fill their tiles."""
    prompts = tiny_requests.two_prompts(family)
    if family not in ANY_RESOLUTION:
        return prompts
    filling = {(40, 90): (48, 96), (80, 70): (96, 48)}
    return [
        replace(prompt, items=tuple(item if isinstance(item, int) else filling[item] for item in prompt.items))
        for prompt in prompts
    ]


def request_of(family: str, prompts: list[Prompt]) -> Request:
    """Return a request whose thumbnails show the content of their tiles, so that the arrangement can be found."""
    request = tiny_requests.request(family, prompts)
    if family not in TILES:
        return request
    pixels = request.inputs["pixel_values"]
    for row, prompt in enumerate(prompts):
        tiles = pixels if family == "internvl" else pixels[row]
        start = 0
        for other in prompts[: row + 1] if family == "internvl" else [prompt]:
            for shape in (item for item in other.items if not isinstance(item, int)):
                if shape == TILED:
                    picture = torch.cat([tiles[start], tiles[start + 1]], dim=-1)
                    tiles[start + 2] = torch.nn.functional.adaptive_avg_pool2d(picture, picture.shape[-2])
                start += 3 if shape == TILED else 1
    return request
