"""What a plug-in is: settings, bound to a model, that act on a request while it is prefilled or decoded.

A prefill that brings images runs like this; a plug-in may do nothing at any of these points:

    start          the decoder's inputs are known (vision features merged in), nothing has run; `Prefill.preview` runs
                   the unedited decoder as far as needed, without a cache, so nothing of it remains
    edit_layer     after decoder layer l, for the layers in `edited_layers`
    enter_layer    before decoder layer l, for the layers in `entered_layers`: look at its arguments
    edit_cache     when the first `refine_after[row]` columns of a row are in the cache and nothing behind them has run
    finish         after the last column, with the finished cache

A plug-in that acts on decoding has `start_decoding` instead, or too: it is called once for each call of `generate`
and may add logits processors and arguments (`DecodingEdit`). One file a plug-in says which of the two it does: nothing
is called that it does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from qkedit.plugins.core.decoding import DecodingEdit, Generation
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.prefill import Prefill, Span
from qkedit.plugins.core.report import PluginReport


class RequestEdit:
    """What one plug-in does to one prefill; subclasses override what they need.

    Attributes:
        edited_layers: after which decoder layers `edit_layer` is called.
        entered_layers: before which decoder layers `enter_layer` is called.
        refine_after: None, or for each batch row how many columns (padding included) have to be in the cache when
            it is edited; None for a row that is not. Every image of the row lies before.
    """

    edited_layers: frozenset[int] = frozenset()
    entered_layers: frozenset[int] = frozenset()
    refine_after: tuple[int | None, ...] | None = None

    def enter_layer(self, layer: int, arguments: Mapping[str, Any], span: Span) -> None:
        """Look at a layer's keyword arguments (`position_embeddings`, …) for the columns of `span`; change nothing."""

    def edit_layer(self, layer: int, hidden: Tensor, span: Span) -> Tensor:
        """Return the state after `layer`, `[batch, span, D]`, edited; `hidden` itself must stay as it is."""
        return hidden

    def edit_cache(self, cache: Any, rows: tuple[int, ...], length: int) -> None:
        """Edit `cache.layers[i].keys` and `.values` of `rows` in place; the cache holds the first `length` columns."""

    def finish(self, cache: Any, length: int) -> None:
        """Look at the cache (None without one) after the whole prefill of `length` columns."""

    def report(self) -> PluginReport:
        """Return what was done; called any time after `finish`."""
        return PluginReport()


@runtime_checkable
class PrefillPlugin(Protocol):
    """A plug-in bound to one model that acts on prefills with images."""

    def start(self, prefill: Prefill) -> RequestEdit:
        """Begin one prefill."""
        ...


@runtime_checkable
class DecodingPlugin(Protocol):
    """A plug-in bound to one model that acts on decoding, with images and without."""

    def start_decoding(self, generation: Generation) -> DecodingEdit:
        """Begin one call of `generate`."""
        ...


BoundPlugin = PrefillPlugin | DecodingPlugin
"""A plug-in whose settings have been checked against one model; it may be both kinds at once."""


@runtime_checkable
class Plugin(Protocol):
    """A plug-in's settings, valid in themselves; usually a frozen dataclass."""

    @property
    def name(self) -> str:
        """The name users know it by."""
        ...

    def bind(self, parts: VLMModules) -> BoundPlugin:
        """Check the settings against a model, fill in what depends on it. Raises QkeditError; changes nothing."""
        ...
