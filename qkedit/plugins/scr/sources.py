"""Which cells of a grid give (sources) and which receive (their neighbours), by the cells' scores.

Sources are the highest scores among cells that are not on the border, ties going to the lower cell; neighbours are the
up to eight cells around a source. Strong sources choose first, so that a cell with two claims belongs to the stronger
one, and no cell is both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Claim = Literal["greedy", "fixed"]


@dataclass(frozen=True)
class Choice:
    """Sources and neighbours in one grid, as numbers of cells, row by row.

    Attributes:
        sources: from the strongest to the weakest.
        neighbours: each cell that receives, once.
        owners: for each neighbour the source it receives from.
    """

    sources: tuple[int, ...]
    neighbours: tuple[int, ...]
    owners: tuple[int, ...]


def choose(scores: Sequence[Tensor], count: int, claim: Claim) -> list[Choice]:
    """Choose at most `count` sources among all cells of some grids, and their neighbours.

    Args:
        scores: for each grid `[rows, columns]`.
        count: how many cells are candidates, K.
        claim: "greedy": a candidate that an earlier source has made its neighbour is not a source, and none takes its
            place. "fixed": every candidate is a source.
    """
    candidates = _strongest(scores, count)
    chosen: list[Choice] = []
    for grid, grid_scores in enumerate(scores):
        rows, columns = grid_scores.shape
        own = [cell for which, cell in candidates if which == grid]
        chosen.append(_claim(own, rows, columns, claim))
    return chosen


def interior(rows: int, columns: int) -> list[int]:
    """Cells that are not in the first or last row or column; none in a grid with a side under 3."""
    return [row * columns + column for row in range(1, rows - 1) for column in range(1, columns - 1)]


def _strongest(scores: Sequence[Tensor], count: int) -> list[tuple[int, int]]:
    """Grid and cell of the `count` highest scores, the highest first, ties to the lower grid and cell."""
    ranked = []
    for grid, grid_scores in enumerate(scores):
        values = grid_scores.flatten().tolist()
        ranked += [(-values[cell], grid, cell) for cell in interior(*grid_scores.shape)]
    return [(grid, cell) for _, grid, cell in sorted(ranked)[:count]]


def _claim(candidates: Sequence[int], rows: int, columns: int, claim: Claim) -> Choice:
    owner: dict[int, int] = {}
    sources: list[int] = []
    taken = set(candidates) if claim == "fixed" else set()
    for cell in candidates:
        if cell in owner:
            continue
        sources.append(cell)
        taken.add(cell)
        for neighbour in _around(cell, rows, columns):
            if neighbour not in taken:
                owner.setdefault(neighbour, cell)
    return Choice(tuple(sources), tuple(owner), tuple(owner.values()))


def _around(cell: int, rows: int, columns: int) -> list[int]:
    row, column = divmod(cell, columns)
    return [
        near_row * columns + near_column
        for near_row in range(max(row - 1, 0), min(row + 2, rows))
        for near_column in range(max(column - 1, 0), min(column + 2, columns))
        if (near_row, near_column) != (row, column)
    ]
