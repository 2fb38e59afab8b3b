"""Choose the cells of a grid that give (sources) and those that receive (their neighbours), by the cells' scores.

Sources are the cells with the highest scores that are not on the border, with ties going to the lower cell; neighbours
are the up to eight cells around a source. Strong sources choose first, so a cell between two sources belongs to the
stronger one, and no cell is both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Claim = Literal["greedy", "fixed"]


@dataclass(frozen=True)
class Choice:
    """The sources and neighbours in one grid, as numbers of cells, counted row by row.

    Attributes:
        sources: the giving cells, from the strongest to the weakest.
        neighbours: the receiving cells, each once.
        owners: for each neighbour the source from which it receives.
    """

    sources: tuple[int, ...]
    neighbours: tuple[int, ...]
    owners: tuple[int, ...]


def choose(scores: Sequence[Tensor], count: int, claim: Claim) -> list[Choice]:
    """Choose at most `count` sources among all cells of the grids, and their neighbours.

    Args:
        scores: the scores of each grid, `[rows, columns]`.
        count: K, the number of candidate cells.
        claim: "greedy": a candidate that is a neighbour of an earlier source is not a source, and is not replaced.
            "fixed": every candidate is a source.
    """
    candidates = _strongest(scores, count)
    chosen: list[Choice] = []
    for grid, grid_scores in enumerate(scores):
        rows, columns = grid_scores.shape
        own = [cell for which, cell in candidates if which == grid]
        chosen.append(_claim(own, rows, columns, claim))
    return chosen


def interior(rows: int, columns: int) -> list[int]:
    """Return the cells that are not in the first or last row or column; empty for a grid with a side under 3."""
    return [row * columns + column for row in range(1, rows - 1) for column in range(1, columns - 1)]


def _strongest(scores: Sequence[Tensor], count: int) -> list[tuple[int, int]]:
    """Return grid and cell of the `count` highest scores, descending, with ties to the lower grid and cell."""
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
