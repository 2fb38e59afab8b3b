"""Resample a depth map to a grid of image tokens by the area average over each token's part of the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """The part of an image that a grid covers, as shares of the image's height and width.

    A centre crop is inside 0 … 1, a padded image extends beyond it.
    """

    top: float = 0.0
    left: float = 0.0
    bottom: float = 1.0
    right: float = 1.0


WHOLE = Region()


def area_average(depth: Tensor, rows: int, columns: int, region: Region = WHOLE) -> Tensor:
    """Return the mean depth of each of `rows × columns` equal cells of a region, float32 `[rows, columns]`.

    A partly covered pixel counts in proportion. A cell in the padding takes the depth of the nearest pixel.

    Args:
        depth: the depth of every pixel of the image, `[height, width]`.
        rows: the number of rows of the grid.
        columns: the number of columns of the grid.
        region: the part of the image that the grid covers.
    """
    height, width = depth.shape
    down = _shares(height, rows, region.top, region.bottom)
    across = _shares(width, columns, region.left, region.right)
    return (down @ depth.detach().to("cpu", torch.float64) @ across.T).float()


def _shares(pixels: int, cells: int, start: float, end: float) -> Tensor:
    """Return the weight of each pixel of a line in each cell, float64 `[cells, pixels]`; rows sum to 1."""
    edges = torch.linspace(start * pixels, end * pixels, cells + 1, dtype=torch.float64)
    left = torch.arange(pixels, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    covered = covered.clamp(min=0)
    # A sliver left by rounding at the edge between two pixels is not a pixel.
    covered[covered < 1e-9] = 0
    outside = covered.sum(1) == 0
    nearest = ((edges[1:] + edges[:-1]) / 2).floor().long().clamp(0, pixels - 1)
    covered[outside, nearest[outside]] = 1
    return covered / covered.sum(1, keepdim=True)
