"""One row per layer with the medians of its heads, shared by tables, plots and pages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from qkedit.errors import counted
from qkedit.inspection.spectra import HeadSpectrum, Inspection, LayerSpectra


@dataclass(frozen=True)
class SpectrumRow:
    """The figures of one head, or the medians over a layer's heads (for gaps the smallest).

    Shares are 0–1, or None where they have no meaning.
    """

    layer: int
    heads: str  # "3" for one head, "28 heads" for a layer
    singular_values: tuple[float, ...]
    energy_top_k: float
    effective_rank: float
    symmetric_share: float | None
    gap_at_k: float | None
    unrealized_share: float | None
    leak: float | None
    kept: dict[str, float]  # at an offset, by the part that changed: the mean of both sides


def layer_row(layer: LayerSpectra) -> SpectrumRow:
    """Return the row of a whole layer."""
    heads = layer.heads
    parts = heads[0].kept or {}
    return SpectrumRow(
        layer=layer.layer,
        heads=counted(len(heads), "head"),
        singular_values=tuple(map(median, zip(*(head.singular_values for head in heads), strict=True))),
        energy_top_k=median(head.energy_top_k for head in heads),
        effective_rank=median(head.effective_rank for head in heads),
        symmetric_share=median_known(head.symmetric_share for head in heads),
        gap_at_k=min((head.gap_at_k for head in heads if head.gap_at_k is not None), default=None),
        unrealized_share=median_known(head.unrealized_share for head in heads),
        leak=median_known(head.leak for head in heads),
        kept={
            part: share for part in parts if (share := median_known(_kept(head, part) for head in heads)) is not None
        },
    )


def head_row(layer: LayerSpectra, head: HeadSpectrum) -> SpectrumRow:
    """Return the row of one head."""
    return SpectrumRow(
        layer=layer.layer,
        heads=str(head.head),
        singular_values=head.singular_values,
        energy_top_k=head.energy_top_k,
        effective_rank=head.effective_rank,
        symmetric_share=head.symmetric_share,
        gap_at_k=head.gap_at_k,
        unrealized_share=head.unrealized_share,
        leak=head.leak,
        kept={part: share for part in head.kept or {} if (share := _kept(head, part)) is not None},
    )


def rows_of(inspection: Inspection, *, every_head: bool) -> list[SpectrumRow]:
    """Return one row per layer, or one per head."""
    if every_head:
        return [head_row(layer, head) for layer in inspection.layers for head in layer.heads]
    return [layer_row(layer) for layer in inspection.layers]


def median_known(numbers: Iterable[float | None]) -> float | None:
    """Return the median of the numbers that are not None; None if all are."""
    known = [number for number in numbers if number is not None]
    return median(known) if known else None


def offset_text(offset: tuple[int, int, int]) -> str:
    """Return an offset in the form of the option: `5`, or `0,3,-2`."""
    return str(offset[0]) if len(set(offset)) == 1 else ",".join(map(str, offset))


def _kept(head: HeadSpectrum, part: str) -> float | None:
    if head.kept is None:
        return None
    # The median of two numbers is their mean.
    return median_known((head.kept[part].query_side, head.kept[part].key_side))
