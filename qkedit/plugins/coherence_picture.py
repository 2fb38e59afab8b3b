"""Keys over the image as a picture: their three principal components as red, green and blue."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qkedit.errors import QkeditError

if TYPE_CHECKING:
    from PIL.Image import Image


def principal_colours(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Return two pictures of keys `[H, rows, columns, d]` in the same colours, `[rows, columns, 3]` from 0 to 1.

    The components are those of `before`; each picture is stretched by itself, since refined keys differ less.
    """
    first, second = (_flat(keys) for keys in (before, after))
    centred = first - first.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    axes = directions[:3]
    # The sign of a component is arbitrary; the largest weight positive makes it the same everywhere.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    shape = (before.shape[1], before.shape[2])
    return _stretched(centred @ axes.T, shape), _stretched((second - second.mean(0)) @ axes.T, shape)


def keys_picture(panels: Sequence[tuple[str, Tensor]], image: Image, title: str, file_format: str) -> bytes:
    """Return an image beside pictures of its keys, as `png`, `svg` or `pdf`.

    Args:
        panels: each picture's title and colours, `[rows, columns, 3]`.
        image: what the request showed.
        title: above all of it.
        file_format: of the picture.

    Raises:
        QkeditError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise QkeditError("matplotlib is not installed", where="--picture", remedy="run: pip install 'qkedit[plot]'")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "qkedit", "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(3.2 * (len(panels) + 1), 3.6), layout="constrained")
        figure.suptitle(title, fontsize=11, parse_math=False)
        axes = figure.subplots(1, len(panels) + 1)
        axes[0].imshow(image.convert("RGB"))
        axes[0].set_title("image")
        for area, (name, colours) in zip(axes[1:], panels, strict=True):
            area.imshow(colours.numpy(), interpolation="nearest")
            area.set_title(name, parse_math=False)
        for area in axes:
            area.set_xticks([])
            area.set_yticks([])
        stream = io.BytesIO()
        undated: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[file_format]
        figure.savefig(stream, format=file_format, dpi=130, metadata=undated)
    return stream.getvalue()


def _flat(keys: Tensor) -> Tensor:
    """Return one vector a cell, its keys of all heads, `[rows · columns, H · d]`."""
    return keys.cpu().double().permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


def _stretched(scores: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return scores `[N, 1 … 3]` as colours: from the 2nd to the 98th percentile of each component."""
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    colours = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    padded = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
    return padded.unflatten(0, shape).float()
