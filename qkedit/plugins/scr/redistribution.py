"""The redistribution of SCR during a prefill: after each of its layers, sources give to their neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkedit.plugins.core.norm_entropy import norm_entropy
from qkedit.plugins.core.prefill import Prefill, Span
from qkedit.plugins.core.protocol import RequestEdit
from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.scr.diagnosis import CellNorms, Diagnosis, ImageChoices
from qkedit.plugins.scr.settings import SCRSettings
from qkedit.selection import describe


@dataclass(frozen=True, kw_only=True)
class SCRReport(PluginReport):
    """The report of SCR on one request.

    Attributes:
        sources, neighbours: their numbers in all grids.
        grids: the number of grids of all images.
        grids_without_sources: the number of grids without a source.
        layers, diagnosis: the edited and the scored layers; no diagnosis if sources were drawn at random.
        images_remembered: the number of images whose sources were known from an earlier request.
        norm_ratio: by layer, `Σ‖h_i‖` over all cells with SCR divided by the same without.
        entropy: the entropy of the norms of an image's cells in nats, mean over images, after the last edited layer.
        entropy_unedited: the same without SCR; None if it was not measured.
    """

    sources: int
    neighbours: int
    grids: int
    grids_without_sources: int
    layers: str
    diagnosis: str | None
    images_remembered: int
    norm_ratio: Mapping[int, float]
    entropy: float
    entropy_unedited: float | None


class Redistribution(RequestEdit):
    """SCR's edit of one prefill."""

    def __init__(
        self,
        prefill: Prefill,
        settings: SCRSettings,
        edited: tuple[int, ...],
        scored: tuple[int, ...],
        diagnosis: Diagnosis,
    ) -> None:
        self.edited_layers = frozenset(edited)
        self._settings = settings
        self._edited = edited
        self._scored = scored
        self._diagnosis = diagnosis
        self._grids = prefill.grids
        self._measure = CellNorms(prefill)
        self._norms: dict[int, Tensor] = {}
        self._pairs = _pairs(prefill, diagnosis.choices, settings)
        self._placed: dict[tuple[torch.device, Span], _Pairs] = {}

    def edit_layer(self, layer: int, hidden: Tensor, span: Span) -> Tensor:
        """Redistribute the state after one layer."""
        pairs = self._placed_in(span, hidden.device)
        factor = self._settings.factor
        edited = hidden.clone()
        sources = hidden[pairs.source_rows, pairs.source_columns].float()
        givers = hidden[pairs.neighbour_rows, pairs.owner_columns].float()
        receivers = hidden[pairs.neighbour_rows, pairs.neighbour_columns].float()
        edited[pairs.neighbour_rows, pairs.neighbour_columns] = (receivers + (factor - 1) * givers).to(hidden.dtype)
        edited[pairs.source_rows, pairs.source_columns] = (sources / factor).to(hidden.dtype)
        if layer in self._diagnosis.cell_norms or layer == self._edited[-1]:  # other norms are not reported
            self._add_norms(layer, edited, span)
        return edited

    def report(self) -> SCRReport:
        """Return the chosen sources and the change of norms."""
        before, after = self._diagnosis.cell_norms, self._norms
        last = self._edited[-1]
        every = [choice for choices in self._diagnosis.choices for choice in choices]
        return SCRReport(
            sources=sum(len(choice.sources) for choice in every),
            neighbours=sum(len(choice.neighbours) for choice in every),
            grids=len(every),
            grids_without_sources=sum(not choice.sources for choice in every),
            layers=describe(self._edited),
            diagnosis=describe(self._scored) if self._settings.selection == "attention" else None,
            images_remembered=self._diagnosis.remembered,
            norm_ratio={
                layer: float(after[layer].sum() / before[layer].sum().to(after[layer].device))
                for layer in self._edited
                if layer in before
            },
            entropy=self._entropy(after[last]),
            entropy_unedited=self._entropy(before[last]) if last in before else None,
        )

    def _placed_in(self, span: Span, device: torch.device) -> _Pairs:
        if (device, span) not in self._placed:
            self._placed[device, span] = self._pairs.within(span).to(device)
        return self._placed[device, span]

    def _add_norms(self, layer: int, hidden: Tensor, span: Span) -> None:
        norms = self._measure(hidden, span)
        self._norms[layer] = norms if layer not in self._norms else self._norms[layer] + norms

    def _entropy(self, cell_norms: Tensor) -> float:
        """Return the mean of `norm_entropy` over images."""
        entropies = []
        start = 0
        for extent in self._grids.extents:
            cells = sum(grid.positions.numel() for grid in self._grids.of(extent))
            entropies.append(float(norm_entropy(cell_norms[start : start + cells])))
            start += cells
        return sum(entropies) / len(entropies)


@dataclass(frozen=True)
class _Pairs:
    """The sources and neighbours of all prompts as positions in the batch; int64, neighbours parallel to owners."""

    source_rows: Tensor
    source_columns: Tensor
    neighbour_rows: Tensor
    neighbour_columns: Tensor
    owner_columns: Tensor

    def within(self, span: Span) -> _Pairs:
        """Return the pairs in a span, with columns counted from its beginning; an image is never cut."""
        sources = (self.source_columns >= span.first) & (self.source_columns < span.end)
        neighbours = (self.neighbour_columns >= span.first) & (self.neighbour_columns < span.end)
        return _Pairs(
            self.source_rows[sources],
            self.source_columns[sources] - span.first,
            self.neighbour_rows[neighbours],
            self.neighbour_columns[neighbours] - span.first,
            self.owner_columns[neighbours] - span.first,
        )

    def to(self, device: torch.device) -> _Pairs:
        """Return the same pairs on a device."""
        return _Pairs(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def _pairs(prefill: Prefill, choices: Sequence[ImageChoices], settings: SCRSettings) -> _Pairs:
    places: list[list[int]] = [[] for _ in range(5)]
    for extent, own in zip(prefill.grids.extents, choices, strict=True):
        for grid, choice in zip(prefill.grids.of(extent), own, strict=True):
            columns = grid.cells.tolist()
            owners = set(choice.owners)
            divided = [cell for cell in choice.sources if settings.alone == "divide" or cell in owners]
            for place, values in zip(
                places,
                (
                    [extent.row] * len(divided),
                    [columns[cell] for cell in divided],
                    [extent.row] * len(choice.neighbours),
                    [columns[cell] for cell in choice.neighbours],
                    [columns[cell] for cell in choice.owners],
                ),
                strict=True,
            ):
                place.extend(values)
    return _Pairs(*(torch.tensor(place, dtype=torch.long) for place in places))
