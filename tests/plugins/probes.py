"""Small plug-ins that observe, count and edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from qkedit.plugins.core.prefill import Prefill, Span
from qkedit.plugins.core.protocol import RequestEdit
from qkedit.plugins.core.report import PluginReport


@dataclass(frozen=True, kw_only=True)
class ProbeReport(PluginReport):
    calls: int


@dataclass
class Probe:
    """A plug-in that splits the prefill at given columns and records its calls.

    Attributes:
        refine: "end" (before the last token), "image" (after each prompt's last image) or None.
        edit: a function that is called with the cache, rows and length.
        layers: the layers after which `change` is applied to the state.
    """

    refine: str | None = None
    edit: Callable[[Any, tuple[int, ...], int], None] | None = None
    layers: tuple[int, ...] = ()
    change: Callable[[Tensor], Tensor] | None = None
    preview: int | None = None
    name: str = "probe"
    prefills: list[Prefill] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def bind(self, parts: Any) -> Probe:
        return self

    def start(self, prefill: Prefill) -> RequestEdit:
        self.prefills.append(prefill)
        if self.preview is not None:
            prefill.preview(self.preview, lambda layer, hidden: self.calls.append(("preview", layer, hidden.shape)))
        return _ProbeEdit(self, prefill)


class _ProbeEdit(RequestEdit):
    def __init__(self, probe: Probe, prefill: Prefill) -> None:
        self.probe = probe
        self.edited_layers = self.entered_layers = frozenset(probe.layers)
        rows = range(prefill.grids.batch)
        if probe.refine == "end":
            self.refine_after = tuple(prefill.length - 1 for _ in rows)
        elif probe.refine == "image":
            last = {extent.row: extent.last + 1 for extent in prefill.grids.extents}
            self.refine_after = tuple(last.get(row) for row in rows)

    def enter_layer(self, layer: int, arguments: Any, span: Span) -> None:
        self.probe.calls.append(("enter", layer, (span.first, span.end), "position_embeddings" in arguments))

    def edit_layer(self, layer: int, hidden: Tensor, span: Span) -> Tensor:
        self.probe.calls.append(("layer", layer, (span.first, span.end)))
        return hidden if self.probe.change is None else self.probe.change(hidden)

    def edit_cache(self, cache: Any, rows: tuple[int, ...], length: int) -> None:
        self.probe.calls.append(("cache", rows, length, int(cache.get_seq_length())))
        if self.probe.edit is not None:
            self.probe.edit(cache, rows, length)

    def finish(self, cache: Any, length: int) -> None:
        self.probe.calls.append(("finish", length, None if cache is None else int(cache.get_seq_length())))

    def report(self) -> PluginReport:
        return ProbeReport(calls=len(self.probe.calls))
