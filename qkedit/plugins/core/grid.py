"""Map a prompt's image tokens to the image: the prompt column and batch row of each cell of each grid.

A processor turns an image into one or more rectangles of cells (the whole image, a tile, a thumbnail), and the prompt
holds one placeholder token per cell, plus tokens that are not cells (a newline at the end of a row). A `Grid` is one
such rectangle. `grid_layouts` holds the layout of every model family. This module defines a grid, and matches the
layouts of the images with the placeholders of the prompts. The number of placeholders must match exactly: in a grid
shifted by one token, cells would have the wrong neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from qkedit.plugins.core.grid_layouts import EncodedImages, GridMismatch, ImageLayout, Run, image_token, layout_of


@dataclass(frozen=True)
class Grid:
    """One rectangle of cells of one image in one prompt.

    Attributes:
        row: batch row of the prompt.
        image: the number of the image in the request, in the order of the processor.
        kind, tile: as in `Part`.
        positions: `[rows, columns]` int64 on the CPU, the prompt column (including padding) of each cell.
    """

    row: int
    image: int
    kind: str
    tile: int | None
    positions: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        rows, columns = self.positions.shape
        return rows, columns

    @property
    def cells(self) -> Tensor:
        """`[rows · columns]`, the prompt columns of all cells, row by row."""
        return self.positions.flatten()


@dataclass(frozen=True)
class ImageExtent:
    """The first and last prompt column (inclusive) of an image, including anything between its tokens."""

    row: int
    image: int
    first: int
    last: int


@dataclass(frozen=True)
class ImageGrids:
    """All grids of a batch of prompts.

    Attributes:
        batch, length: the shape of the prompts, including padding.
        grids: sorted by row, image and part, in the order of the prompt.
        extents: one per image of each row, in the same order.
        placeholders: `[batch, length]` bool on the CPU: image tokens, whether they are cells or not.
    """

    batch: int
    length: int
    grids: tuple[Grid, ...]
    extents: tuple[ImageExtent, ...]
    placeholders: Tensor

    def of(self, extent: ImageExtent) -> tuple[Grid, ...]:
        """Return the grids of one image of one row."""
        return tuple(grid for grid in self.grids if (grid.row, grid.image) == (extent.row, extent.image))

    @cached_property
    def cell_rows(self) -> Tensor:
        """`[cells]` int64 on the CPU, the batch row of every cell of every grid, parallel to `cell_columns`."""
        return torch.cat([torch.full((grid.cells.numel(),), grid.row) for grid in self.grids])

    @cached_property
    def cell_columns(self) -> Tensor:
        """`[cells]` int64 on the CPU, the prompt column of every cell of every grid."""
        return torch.cat([grid.cells for grid in self.grids])


def image_grids(config: Any, input_ids: Tensor, inputs: Mapping[str, Any]) -> ImageGrids:
    """Find every cell of every image of a batch of prompts.

    Args:
        config: the config of the whole model.
        input_ids: `[batch, length]`, with one placeholder for each image token.
        inputs: the inputs of the image encoder by argument name (`pixel_values`, `image_grid_thw`, `image_sizes` …).
            Prompts that `generate` repeats for beams or several answers share the images of the first of them.

    Raises:
        UnsupportedForm: the model's image tokens do not form a grid, or its family is unknown.
        GridMismatch: the placeholders of the prompts do not match the images.
    """
    layout = layout_of(config)
    ids = input_ids.detach().cpu()
    placeholders = ids == image_token(config)
    mismatch: GridMismatch | None = None
    for repeats in _repetitions(ids):
        runs = tuple(_runs(ids[::repeats], placeholders[::repeats]))
        try:
            layouts = layout(EncodedImages(config, inputs, runs))
            placed = _place(layouts, placeholders[::repeats])
        except GridMismatch as error:
            mismatch = mismatch or error
            continue
        return _repeated(placed, repeats, placeholders)
    assert mismatch is not None  # 1 is always among the repetitions
    raise mismatch


def _repetitions(ids: Tensor) -> Iterator[int]:
    """Yield the possible numbers of repetitions of each prompt: 1, and all that the equality of rows permits."""
    batch = ids.shape[0]
    for repeats in range(1, batch + 1):
        if batch % repeats == 0 and torch.equal(ids[::repeats].repeat_interleave(repeats, dim=0), ids):
            yield repeats


def _runs(ids: Tensor, placeholders: Tensor) -> Iterator[Run]:
    for row in range(ids.shape[0]):
        columns = placeholders[row].nonzero().flatten().tolist()
        first = previous = None
        for column in [*columns, None]:
            if first is None or previous is None:
                first = column
            elif column != previous + 1:
                label = int(ids[row, first - 1]) if first else -1
                yield Run(row, first, previous - first + 1, label)
                first = column
            previous = column


def _place(layouts: Sequence[ImageLayout], placeholders: Tensor) -> tuple[tuple[Grid, ...], tuple[ImageExtent, ...]]:
    """Match the images, in order, with the placeholders, row by row."""
    grids: list[Grid] = []
    extents: list[ImageExtent] = []
    remaining = list(enumerate(layouts))
    for row in range(placeholders.shape[0]):
        columns = placeholders[row].nonzero().flatten()
        start = 0
        while start < columns.numel():
            if not remaining or start + remaining[0][1].tokens > columns.numel():
                raise _does_not_add_up(layouts, placeholders)
            image, layout = remaining.pop(0)
            own = columns[start : start + layout.tokens]
            grids.extend(Grid(row, image, part.kind, part.tile, own[part.offsets]) for part in layout.parts)
            extents.append(ImageExtent(row, image, int(own[0]), int(own[-1])))
            start += layout.tokens
    if remaining:
        raise _does_not_add_up(layouts, placeholders)
    return tuple(grids), tuple(extents)


def _repeated(
    placed: tuple[tuple[Grid, ...], tuple[ImageExtent, ...]], repeats: int, placeholders: Tensor
) -> ImageGrids:
    """Copy the grids of the first occurrence of a prompt to its repetitions."""
    batch, length = placeholders.shape
    grids, extents = placed
    rows = range(batch)
    return ImageGrids(
        batch,
        length,
        tuple(
            Grid(row, grid.image, grid.kind, grid.tile, grid.positions)
            for row in rows
            for grid in grids
            if grid.row == row // repeats
        ),
        tuple(
            ImageExtent(row, extent.image, extent.first, extent.last)
            for row in rows
            for extent in extents
            if extent.row == row // repeats
        ),
        placeholders,
    )


def _does_not_add_up(layouts: Sequence[ImageLayout], placeholders: Tensor) -> GridMismatch:
    needed = [layout.tokens for layout in layouts]
    found = placeholders.sum(dim=1).tolist()
    return GridMismatch(
        f"the images need {needed} image tokens, but the prompts hold {found}",
        where="image tokens",
        remedy="pass what the model's own processor returns for these prompts and images",
    )
