"""Replace the cached keys or values of image tokens by a mix of those of their grid, and report on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkedit.plugins.core.grid import Grid
from qkedit.plugins.core.prefill import KeyRotations, Rotation, Span
from qkedit.plugins.core.protocol import RequestEdit
from qkedit.plugins.dscr.mixing import mixed, variance, without_lost
from qkedit.plugins.dscr.report import DSCRReport, RefinementFigures
from qkedit.plugins.transformers.cache import cache_layer, columns_held


@dataclass(frozen=True)
class Refinement:
    """The changes to make to the cache: the options of `DSCR` in plain form."""

    layers: tuple[int, ...]
    keys: bool
    values: bool
    blend: float
    skip_incomplete: bool


@dataclass(frozen=True)
class _Batch:
    """Grids with equally many tokens, so that one product covers all of them.

    Attributes:
        rows: the batch row of each grid, `[G]`.
        columns: the prompt column of each token, `[G, N]`.
        weights: w of each grid, `[G, N, N]`.
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> _Batch:
        return _Batch(self.rows.to(device), self.columns.to(device), self.weights.to(device))


class CacheRefinement(RequestEdit):
    """The refinement of one request.

    Args:
        refinement: the changes to make.
        rotations: undoes the rotation of keys; None to mix them in the form of the cache.
        grids: the grids of the request.
        weights: w of each grid, `[N, N]`.
        refine_after: see `RequestEdit`.
    """

    def __init__(
        self,
        refinement: Refinement,
        rotations: KeyRotations | None,
        grids: Sequence[Grid],
        weights: Sequence[Tensor],
        refine_after: tuple[int | None, ...],
    ) -> None:
        self.refine_after = refine_after
        self.cached_layers = frozenset(refinement.layers)
        self._refinement = refinement
        self._rotations = rotations
        self._grids = tuple(zip(grids, weights, strict=True))
        self._figures = RefinementFigures(refinement.layers, [weight for _, weight in self._grids])
        self._batches: dict[tuple[tuple[int, ...], int, torch.device], list[_Batch]] = {}
        if rotations is not None:
            self.entered_layers = rotations.entered_layers

    def enter_layer(self, layer: int, arguments: Mapping[str, Any], span: Span) -> None:
        """Record the angles by which the layer rotates the columns of `span`."""
        if self._rotations is not None:
            self._rotations.see(layer, arguments)

    @torch.no_grad()
    def edit_cache(self, cache: Any, rows: tuple[int, ...], length: int) -> None:
        """Refine the image tokens of `rows` in every selected layer."""
        for index in self._refinement.layers:
            self.edit_cache_layer(index, cache_layer(cache, index, "dscr"), rows, length)

    def edit_cache_layer(self, index: int, layer: Any, rows: tuple[int, ...], length: int) -> None:
        """Refine the image tokens of `rows` in one layer; see `RequestEdit`."""
        first, lost = columns_held(layer, length)
        for batch in self._batches_without(rows, lost, index, layer.keys.device):
            rotation = None if self._rotations is None else self._rotations.of(index, batch.rows, batch.columns)
            if self._refinement.keys:
                kept = self._refine(layer.keys, batch, first, rotation)
            if self._refinement.values:
                of_values = self._refine(layer.values, batch, first, None)
            self._figures.add(index, *(kept if self._refinement.keys else of_values))

    def report(self) -> DSCRReport:
        """Return layers, effective mixed tokens, the share of variance kept, and warnings."""
        return self._figures.summary()

    def _refine(self, states: Tensor, batch: _Batch, first: int, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        """Refine `[B, H, S, d]`, whose first slot is prompt column `first`: `x_j ← (1−γ) x_j + γ Σ_i w_ij x_i`.

        Returns:
            The variance of each grid after and before, in the space in which it was mixed.
        """
        where = (batch.rows[:, None], slice(None), batch.columns - first)  # gives [G, N, H, d]
        before = states[where].float()
        unrotated = before if rotation is None else rotation.back(before)
        mix = mixed(batch.weights, unrotated)
        kept = variance(unrotated.lerp(mix, self._refinement.blend)), variance(unrotated)
        # Blended in the space of the cache, so that γ = 0 returns its bytes unchanged.
        rotated = mix if rotation is None else rotation.forth(mix)
        states[where] = before.lerp(rotated, self._refinement.blend).to(states.dtype)
        return kept

    def _batches_without(self, rows: tuple[int, ...], lost: int, layer: int, device: torch.device) -> list[_Batch]:
        """Return the grids of `rows` in batches on a device, without the tokens in the first `lost` columns."""
        key = (rows, lost, device)
        if key not in self._batches:
            self._batches[key] = [batch.to(device) for batch in self._batched(rows, lost)]
        whole = sum(grid.cells.numel() for grid, _ in self._grids if grid.row in rows)
        self._figures.lose(layer, whole - sum(batch.columns.numel() for batch in self._batches[key]))
        return self._batches[key]

    def _batched(self, rows: tuple[int, ...], lost: int) -> list[_Batch]:
        by_size: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
        for grid, weights in self._grids:
            kept = (grid.cells >= lost).nonzero().flatten()
            incomplete = len(kept) < len(grid.cells)
            if grid.row not in rows or not len(kept) or (incomplete and self._refinement.skip_incomplete):
                continue
            own = without_lost(weights, kept) if incomplete else weights
            by_size.setdefault(len(kept), []).append((grid.row, grid.cells[kept], own))
        return [
            _Batch(
                torch.tensor([row for row, _, _ in grids]),
                torch.stack([columns for _, columns, _ in grids]),
                torch.stack([weights for _, _, weights in grids]),
            )
            for grids in by_size.values()
        ]
