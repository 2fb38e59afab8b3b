"""The report of DSCR on one request, with warnings if it did little more than average the keys.

The thresholds separate z-scored depth from depth in [0, 1], as measured on the demo model with the true depth of its
scenes, and on tiny models of five architectures with random weights and four depth maps (see the table in
`docs/plugins.md`). With z-scores a token was a mix of 57 to 69 % of the others, and 0.9 to 18 % of the variance among
keys was kept; with depth in [0, 1] it was a mix of 94 to 99 %, and at most 0.6 % was kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.dscr.mixing import effective_tokens

LARGEST_SHARE_MIXED = 0.8
SMALLEST_VARIANCE_KEPT = 0.005
# In a small grid every mix contains nearly all other cells.
SMALLEST_GRID_JUDGED = 9


@dataclass(frozen=True, kw_only=True)
class DSCRReport(PluginReport):
    """The report of DSCR on one request.

    Attributes:
        layers: the refined layers.
        grids: the number of grids of all images.
        effective_tokens: the effective number of tokens in a mix, `1 / Σ_i w_ij²`, mean over tokens and grids.
        share_mixed: the same as a share of the other tokens, over grids that are large enough.
        variance_kept: the share of the variance among keys that is left, mean over layers.
        variance_kept_by_layer: the same by layer; None if there was no variance.
        lost_cells_by_layer: the number of cells that a sliding layer no longer held, or that were skipped with them.
    """

    layers: tuple[int, ...]
    grids: int
    effective_tokens: float | None
    share_mixed: float | None
    variance_kept: float | None
    variance_kept_by_layer: Mapping[int, float | None]
    lost_cells_by_layer: Mapping[int, int]


class RefinementFigures:
    """Collects figures layer by layer; they stay on their device until the summary.

    Args:
        layers: the refined layers.
        weights: w of each grid, `[N, N]`.
    """

    def __init__(self, layers: Sequence[int], weights: Sequence[Tensor]) -> None:
        self._layers = layers
        self._weights = weights
        self._variances: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._lost: dict[int, int] = {}

    def add(self, layer: int, after: Tensor, before: Tensor) -> None:
        """Add the variance of some grids after and before."""
        self._variances.setdefault(layer, []).append((after.sum(), before.sum()))

    def lose(self, layer: int, cells: int) -> None:
        """Add cells that a sliding layer no longer held, or that were skipped with them."""
        if cells:
            self._lost[layer] = self._lost.get(layer, 0) + cells

    def summary(self) -> DSCRReport:
        """Return the report on all added figures."""
        kept = {
            layer: _share(sum(float(after) for after, _ in sums), sum(float(before) for _, before in sums))
            for layer, sums in self._variances.items()
        }
        effective = [float(effective_tokens(weights)) for weights in self._weights]
        others = [len(weights) - 1 for weights in self._weights]
        judged = [
            tokens / count
            for tokens, count in zip(effective, others, strict=True)
            if count + 1 >= SMALLEST_GRID_JUDGED
        ]
        share_mixed, variance_kept = _mean(judged), _mean([share for share in kept.values() if share is not None])
        return DSCRReport(
            layers=tuple(self._layers),
            grids=len(self._weights),
            effective_tokens=_mean(effective),
            share_mixed=share_mixed,
            variance_kept=variance_kept,
            variance_kept_by_layer=kept,
            lost_cells_by_layer=dict(self._lost),
            warnings=tuple(_warnings(share_mixed, variance_kept)),
        )


def _warnings(share_mixed: float | None, variance_kept: float | None) -> list[str]:
    found = []
    if share_mixed is not None and share_mixed > LARGEST_SHARE_MIXED:
        found.append(
            f"dscr mixed each image token from {share_mixed:.0%} of the others, which is nearly the image's average: "
            "depth is flat or not standardized"
        )
    if variance_kept is not None and variance_kept < SMALLEST_VARIANCE_KEPT:
        found.append(f"dscr left {variance_kept:.1%} of the variance among image tokens: they are nearly all equal")
    return found


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
