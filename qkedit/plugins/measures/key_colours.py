"""Show keys over the image as colours: their three principal components as red, green and blue."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_colours(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Return two pictures of keys `[H, rows, columns, d]` in the same colours, `[rows, columns, 3]` from 0 to 1.

    The components are those of `before`. Each picture is stretched separately, since refined keys differ less.
    """
    first, second = (_flat(keys) for keys in (before, after))
    centred = first - first.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    axes = directions[:3]
    # The sign of a component is arbitrary; making the largest weight positive fixes it.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    shape = (before.shape[1], before.shape[2])
    return _stretched(centred @ axes.T, shape), _stretched((second - second.mean(0)) @ axes.T, shape)


def _flat(keys: Tensor) -> Tensor:
    """Return one vector per cell with its keys of all heads, `[rows · columns, H · d]`."""
    return keys.cpu().double().permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


def _stretched(scores: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return scores `[N, 1 … 3]` as colours, scaled from the 2nd to the 98th percentile of each component."""
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    colours = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    padded = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
    return padded.unflatten(0, shape).float()
