"""Add noise to a processor's pixel values, as the forward process of diffusion models does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

STEPS = 1000


@cache
def signal_shares() -> tuple[float, ...]:
    """Return ᾱ of every noise step, the share of the image's variance that is left.

    A sigmoid schedule: β_t = σ(x_t) (0.005 − 10⁻⁵) + 10⁻⁵ with x from −6 to 6, and ᾱ_t = Π (1 − β_i). (VCD, arXiv
    2311.16922, section 3.1, and its published schedule.)
    """
    ramp = torch.linspace(-6, 6, STEPS, dtype=torch.float64)
    betas = torch.sigmoid(ramp) * (0.5e-2 - 1e-5) + 1e-5
    return tuple(torch.cumprod(1 - betas, dim=0).tolist())


def with_noise(inputs: Mapping[str, Any], config: Any, step: int, seed: int) -> Tensor:
    """Return the `pixel_values` of a request with noise: √ᾱ x + √(1 − ᾱ) ε.

    ε depends on the seed alone and is the same for every image and every tile, so that an image gets the same noise
    alone and in a batch. Frames of one image (Qwen) share it. Padding, where all channels are zero, is not changed.

    Args:
        inputs: the image encoder's inputs: `pixel_values` `[…, channels, height, width]`, or flattened patches
            `[patches, channels · frames · size²]` with `image_grid_thw`.
        config: the config of the whole model.
        step: the noise step, from 0 (hardly any noise) to 999 (almost only noise).
        seed: the seed of ε.
    """
    pixels: Tensor = inputs["pixel_values"]
    share = signal_shares()[step]
    if inputs.get("image_grid_thw") is not None:
        noise = _of_patches(pixels, inputs["image_grid_thw"], config, seed)
        shown = torch.ones_like(pixels, dtype=torch.bool)
    else:
        noise = _draw(pixels.shape[-3:], seed).expand(pixels.shape)
        shown = (pixels != 0).any(dim=-3, keepdim=True)
    noised = share**0.5 * pixels.float() + (1 - share) ** 0.5 * noise.to(pixels.device)
    return torch.where(shown, noised.to(pixels.dtype), pixels)


def _of_patches(pixels: Tensor, grids: Tensor, config: Any, seed: int) -> Tensor:
    """Return ε for flattened patches, image by image; the frames of a patch share it."""
    frames = int(getattr(config.vision_config, "temporal_patch_size", 1))
    size = int(config.vision_config.patch_size)
    noise = [
        _draw((count, pixels.shape[1] // (frames * size**2), 1, size**2), seed).expand(-1, -1, frames, -1).flatten(1)
        for count in grids.prod(dim=1).tolist()
    ]
    return torch.cat(noise)


def _draw(shape: tuple[int, ...], seed: int) -> Tensor:
    # Drawn on the CPU, so that every device gets the same noise.
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
