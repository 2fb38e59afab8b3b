"""Measure the spatial structure of an image's keys (KV-coherence), and the entropy of the image tokens' norms.

KV-coherence of a head is the mean cosine between keys of adjacent cells (4-neighbours) minus the mean cosine between
all pairs of cells of the grid, before the rotation by position. It is 0 if keys do not depend on place. DSCR's paper
(OpenReview FHTt9ipAra) shows pictures without a number; this measure is ours.

The entropy is SCR's (arXiv 2602.22469): `c_i = ‖h_i‖` over the image tokens after a layer, `H = −Σ p log p` with
`p = c / Σ c`, in nats; log N where all tokens are equally long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from qkedit.errors import UsageError
from qkedit.plugins.core.grid import Grid
from qkedit.plugins.core.norm_entropy import norm_entropy
from qkedit.plugins.core.prefill import Span
from qkedit.plugins.core.protocol import RequestEdit
from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.transformers.rotation import SeenRotations

if TYPE_CHECKING:
    from qkedit.plugins.core.modules import VLMModules
    from qkedit.plugins.core.prefill import Prefill


def coherence(keys: Tensor) -> Tensor:
    """Return the KV-coherence of each head, `[H]`; NaN for a grid of one cell.

    Args:
        keys: the keys of the cells of one grid, `[H, rows, columns, d]`.
    """
    unit = torch.nn.functional.normalize(keys.float(), dim=-1)
    right = (unit[:, :, 1:] * unit[:, :, :-1]).sum(-1).flatten(1)
    below = (unit[:, 1:] * unit[:, :-1]).sum(-1).flatten(1)
    count = unit.shape[1] * unit.shape[2]
    # Σ_{i≠j} u_i·u_j = ‖Σ u_i‖² − N, without the N × N cosines.
    all_pairs = (unit.sum((1, 2)).square().sum(-1) - count) / (count * (count - 1))
    return torch.cat([right, below], dim=1).mean(1) - all_pairs


@dataclass(frozen=True)
class LayerCoherence:
    """The measures of one layer in one request.

    Attributes:
        layer: the index of the layer.
        by_head: the KV-coherence of each key head, mean over the request's grids; None if the layer has no keys or
            has lost a part of every grid.
        entropy: the entropy of the norms after the layer, mean over the grids.
    """

    layer: int
    by_head: tuple[float, ...] | None
    entropy: float

    @property
    def coherence(self) -> float | None:
        """The mean over heads."""
        return None if self.by_head is None else sum(self.by_head) / len(self.by_head)


@dataclass(frozen=True, kw_only=True)
class CoherenceReport(PluginReport):
    """The measures of one request.

    Attributes:
        layers: the measures of each layer, in order.
        keys: by layer, the keys of the first grid before their rotation, `[H, rows, columns, d]` on the CPU.
    """

    layers: tuple[LayerCoherence, ...]
    keys: Mapping[int, Tensor]


class KeyCoherence:
    """A plug-in that only measures the keys after the other plug-ins; attach it as the last one."""

    name: ClassVar[str] = "coherence"

    def bind(self, parts: VLMModules) -> KeyCoherence:
        """Accept any model."""
        return self

    def start(self, prefill: Prefill) -> _Measurement:
        """Measure one prefill."""
        return _Measurement(prefill)


class _Measurement(RequestEdit):
    def __init__(self, prefill: Prefill) -> None:
        self._parts = prefill.parts
        self._grids = [grid for grid in prefill.grids.grids if grid.cells.numel() > 1]
        self._rotations = SeenRotations()
        self._lengths: dict[int, list[Tensor]] = {}
        self._layers: list[LayerCoherence] = []
        self._keys: dict[int, Tensor] = {}
        self.entered_layers = frozenset(self._parts.attention_layers)
        self.edited_layers = frozenset(range(len(self._parts.layers)))

    def enter_layer(self, layer: int, arguments: Mapping[str, Any], span: Span) -> None:
        """Record the angles by which the layer rotates."""
        self._rotations.see(layer, arguments["position_embeddings"])

    def edit_layer(self, layer: int, hidden: Tensor, span: Span) -> Tensor:
        """Measure the norms after a layer."""
        self._lengths.setdefault(layer, []).append(hidden.norm(dim=-1))
        return hidden

    @torch.no_grad()
    def finish(self, cache: Any, length: int) -> None:
        """Measure the keys of the finished cache."""
        if cache is None:
            raise UsageError("there is no cache to measure", where="use_cache", remedy="run the model with its cache")
        for layer in range(len(self._parts.layers)):
            keys = [
                self._unrotated(layer, cache.layers[layer].keys, grid, length)
                for grid in self._whole(layer, cache, length)
            ]
            lengths = torch.cat(self._lengths[layer], dim=1)
            entropies = [norm_entropy(lengths[grid.row, grid.cells.to(lengths.device)]) for grid in self._grids]
            by_head = torch.stack([coherence(own) for own in keys]).mean(0).tolist() if keys else None
            self._layers.append(
                LayerCoherence(layer, tuple(by_head) if by_head else None, float(torch.stack(entropies).mean()))
            )
            if keys:
                self._keys[layer] = keys[0].cpu()

    def report(self) -> CoherenceReport:
        """Return the measures of every layer."""
        return CoherenceReport(layers=tuple(self._layers), keys=self._keys)

    def _whole(self, layer: int, cache: Any, length: int) -> list[Grid]:
        """Return the grids that are entirely in a layer's cache."""
        if layer not in self._parts.attention_layers:
            return []
        first = max(0, length - cache.layers[layer].keys.shape[2])
        return [grid for grid in self._grids if int(grid.cells.min()) >= first]

    def _unrotated(self, layer: int, keys: Tensor, grid: Grid, length: int) -> Tensor:
        """Return the keys of a grid before their rotation, `[H, rows, columns, d]`."""
        first = max(0, length - keys.shape[2])
        rows, columns = torch.tensor([grid.row], device=keys.device), grid.cells.to(keys.device)
        own = keys[rows[:, None], :, columns[None] - first].float()
        rotation = self._rotations.of(layer, self._parts.layers[layer].self_attn, rows, columns[None])
        return rotation.back(own)[0].transpose(0, 1).unflatten(1, grid.shape)
