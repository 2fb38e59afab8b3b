"""The plug-in interface: settings, bound to a model, that act on a request during its prefill or decoding.

A prefill with images has these steps, each optional for a plug-in:

    start          the decoder's inputs are known (with vision features merged in), and nothing has run yet;
                   `Prefill.preview` runs the unedited decoder as far as needed, without a cache or side effects
    edit_layer     after decoder layer l, for the layers in `edited_layers`
    enter_layer    before decoder layer l, for the layers in `entered_layers`: read its arguments
    edit_cache     when the first `refine_after[row]` columns of a row are in the cache, and no later ones
    finish         after the last column, with the finished cache

A plug-in that acts on decoding has `start_decoding` instead, or in addition. It is called once per call of `generate`
and may edit the logits of every forward pass, read the states after layers, run the model on other inputs in step with
the answer, and add logits processors and arguments (`DecodingEdit`). Only the methods that a plug-in has are called.
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
    """One plug-in's edit of one prefill; subclasses override what they need.

    Attributes:
        edited_layers: the decoder layers after which `edit_layer` is called.
        entered_layers: the decoder layers before which `enter_layer` is called.
        refine_after: None, or for each batch row the number of columns (including padding) in the cache when it is
            edited, None for a row that is not edited. All images of the row must be before that column.
        cached_layers: the decoder layers that `edit_cache` edits, for engines that edit a layer while it runs.
    """

    edited_layers: frozenset[int] = frozenset()
    entered_layers: frozenset[int] = frozenset()
    refine_after: tuple[int | None, ...] | None = None
    cached_layers: frozenset[int] = frozenset()

    def enter_layer(self, layer: int, arguments: Mapping[str, Any], span: Span) -> None:
        """Read a layer's keyword arguments (`position_embeddings`, …) for the columns of `span`, without changes."""

    def edit_layer(self, layer: int, hidden: Tensor, span: Span) -> Tensor:
        """Return the edited state after `layer`, `[batch, span, D]`, without changing `hidden` itself."""
        return hidden

    def edit_cache(self, cache: Any, rows: tuple[int, ...], length: int) -> None:
        """Edit `cache.layers[i].keys` and `.values` of `rows` in place; the cache holds the first `length` columns."""

    def edit_cache_layer(self, index: int, layer: Any, rows: tuple[int, ...], length: int) -> None:
        """Do the part of `edit_cache` for one of `cached_layers`; `layer` has its `keys` and `values`."""

    def finish(self, cache: Any, length: int) -> None:
        """Read the cache (or None) after the whole prefill of `length` columns."""

    def report(self) -> PluginReport:
        """Return a report on this prefill; called at any time after `finish`."""
        return PluginReport()


@runtime_checkable
class PrefillPlugin(Protocol):
    """A plug-in bound to one model that acts on prefills with images."""

    def start(self, prefill: Prefill) -> RequestEdit:
        """Begin one prefill."""
        ...


@runtime_checkable
class DecodingPlugin(Protocol):
    """A plug-in bound to one model that acts on decoding, with or without images."""

    def start_decoding(self, generation: Generation) -> DecodingEdit:
        """Begin one call of `generate`."""
        ...


BoundPlugin = PrefillPlugin | DecodingPlugin
"""A plug-in with settings checked against one model; it may be of both kinds."""


@runtime_checkable
class Plugin(Protocol):
    """A plug-in's settings, valid in themselves; usually a frozen dataclass."""

    @property
    def name(self) -> str:
        """The name of the plug-in for users."""
        ...

    def bind(self, parts: VLMModules) -> BoundPlugin:
        """Check the settings against a model and fill in its defaults, without changing it. Raises QkeditError."""
        ...
