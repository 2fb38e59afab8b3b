"""Make inspections by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qkedit.inspection.spectra import HeadSpectrum, Inspection, LayerSpectra


def spiked(spikes: Sequence[float], size: int = 32) -> tuple[float, ...]:
    """Return a flat spectrum around 1 with some values far above."""
    return (*sorted(spikes, reverse=True), *np.linspace(1.2, 0.8, size - len(spikes)).tolist())


def head(number: int, values: Sequence[float], k: int = 2, **settings: Any) -> HeadSpectrum:
    squares = np.array(values) ** 2
    return HeadSpectrum(
        head=number,
        key_head=number // 2,
        singular_values=tuple(values),
        rank=int(np.sum(squares > 0)),
        k=k,
        energy_top_k=float(squares[:k].sum() / max(squares.sum(), 1e-300)),
        effective_rank=7.5,
        symmetric_share=settings.pop("symmetric_share", 0.55),
        gap_at_k=settings.pop("gap_at_k", 1.25),
        **settings,
    )


def inspection(layers: dict[int, list[Sequence[float]]], **settings: Any) -> Inspection:
    """Return an inspection of these layers' heads, with other fields as given."""
    fields: dict[str, Any] = {
        "model": "org/model",
        "revision": None,
        "channel": "full",
        "offset": (0, 0, 0),
        "wanted": "k 2",
        "warnings": (),
    }
    own = {name: settings.pop(name) for name in list(settings) if name in fields}
    return Inspection(
        **{**fields, **own},
        layers=tuple(
            LayerSpectra(layer, tuple(head(number, values, **settings) for number, values in enumerate(heads)))
            for layer, heads in layers.items()
        ),
    )
